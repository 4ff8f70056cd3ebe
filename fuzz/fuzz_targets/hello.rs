//! Whatever bytes come first to a server with TLS, cut anywhere: a handshake, an end, or silence.

#![no_main]

use std::rc::Rc;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use shardcast::config::Options;
use shardcast::config::args::{self, Command};
use shardcast::engine::{ConnId, Engine, Identity, Output, Peer, Settings, ShardId};

/// Options with TLS alone, and with TLS or none.
static OPTIONS: LazyLock<[Options; 2]> = LazyLock::new(|| {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]);
    let rcgen::CertifiedKey { cert, signing_key } = made.expect("a certificate");
    let file = |name: &str, text: String| {
        let name = format!("shardcast-fuzz-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).expect("the temporary directory takes a file");
        path.display().to_string()
    };
    let (cert, key) = (file("cert", cert.pem()), file("key", signing_key.serialize_pem()));
    ["false", "true"].map(|either| {
        let text =
            format!("tls {{ cert_file: '{cert}', key_file: '{key}' }}\nallow_non_tls: {either}\n");
        let arguments = ["-c".to_owned(), file("conf", text)];
        let Ok(Command::Serve(args)) = args::parse(arguments) else { panic!("-c serves") };
        shardcast::config::load(&args).expect("a good configuration")
    })
});

// The first byte chooses the options, the second where the stream is cut.
fuzz_target!(|data: &[u8]| {
    let [choice, piece, stream @ ..] = data else { return };
    let options = &OPTIONS[usize::from(choice & 1)];
    let settings = Settings::new(options, &Identity::default(), usize::MAX);
    let mut engine = Engine::new(ShardId(0), 1, Rc::new(settings), 1);
    let id = ConnId { slot: 0, generation: 0 };
    engine.open(id, Peer { cid: 1, ip: "127.0.0.1".into(), port: 1 }, true);
    let mut now = 0;
    let mut out_bytes = turn(&mut engine, &mut now);
    for bytes in stream.chunks(usize::from(*piece) + 1) {
        engine.on_bytes(id, bytes);
        out_bytes += turn(&mut engine, &mut now);
    }
    // Nobody gets much out of a server that does not know it.
    assert!(out_bytes < 64 * 1024 + 4 * stream.len(), "{out_bytes} bytes out");
    // Who never comes to an end is cut in time, unless it speaks the protocol in clear.
    for _ in 0..2 {
        now += 60_000_000_000;
        turn(&mut engine, &mut now);
    }
    assert!(engine.view().open_conns() == 0 || options.network.allow_non_tls);
});

/// Lets the engine do what it wants. Returns how many bytes it sends.
fn turn(engine: &mut Engine, now: &mut u64) -> usize {
    *now += 1;
    engine.set_now(*now);
    engine.tick();
    engine.end_turn();
    let mut out_bytes = 0;
    while let Some(action) = engine.next_output() {
        match action {
            Output::Flush(id) => {
                while let Some(batch) = engine.take_batch(id) {
                    let bytes = batch.iter().map(|piece| piece.bytes().len()).sum();
                    out_bytes += bytes;
                    engine.on_sent(id, bytes, Some(batch));
                }
            }
            Output::Close { conn, .. } => engine.on_closed(conn, None),
            _ => {}
        }
    }
    out_bytes
}
