//! A connection by which a server is asked, one question after the other.

use crate::client::{Conn, Inbox, Target};
use crate::fault::{Fault, Outcome};
use crate::wire::{Scanner, push_sub};
use serde_json::Value;

/// The largest answer, in bytes; what is read at once is twice that.
const ANSWER_BYTES: usize = 512 << 10;
const ANSWERS: &str = "_INBOX.perf.desk";

/// A connection that asks and waits for the answer.
pub(crate) struct Desk {
    /// The connection.
    pub(crate) conn: Conn,
    inbox: Inbox,
    scanner: Scanner,
}

impl Desk {
    /// Connects, as whom the target says.
    pub(crate) async fn open(target: &Target) -> Outcome<Self> {
        let (conn, ..) = Conn::open(target, 0).await?;
        let mut subscribe = Vec::new();
        push_sub(ANSWERS, None, 1, &mut subscribe);
        conn.write(subscribe).await?;
        let (inbox, scanner) = (Inbox::new(2 * ANSWER_BYTES), Scanner::new(ANSWER_BYTES));
        Ok(Self { conn, inbox, scanner })
    }

    /// The server's answer, which must be JSON.
    pub(crate) async fn ask(&mut self, subject: &str, payload: &str) -> Outcome<Value> {
        let ask = format!("PUB {subject} {ANSWERS} {}\r\n{payload}\r\n", payload.len());
        self.conn.write(ask.into_bytes()).await.map_err(|fault| fault.at(subject))?;
        let mut answer = None;
        loop {
            let scanned = self.scanner.scan(self.inbox.bytes(), |message| {
                answer.get_or_insert_with(|| message.prefix.to_vec());
            })?;
            self.inbox.consume(scanned.used);
            self.conn.answer(scanned.owed).await?;
            if let Some(answer) = answer {
                return serde_json::from_slice(&answer).map_err(|e| {
                    let text = String::from_utf8_lossy(&answer[..answer.len().min(80)]);
                    let cause = format!("{subject} is answered with '{text}' ({e})");
                    Fault::new(cause, "use a server that answers to that subject")
                });
            }
            self.conn.fill(&mut self.inbox).await.map_err(|fault| fault.at(subject))?;
        }
    }
}
