//! Texts without the secrets in them, for others to read.
//!
//! A value counts as a secret by the name of its key, by its form (seeds of keys, tokens, hashes,
//! credentials in a URL), or because it is a variable. Too much is hidden rather than too little.

use std::collections::BTreeSet;

/// The text in place of a secret.
const HIDDEN: &str = "***";
/// Parts of the names of keys whose values are secret.
const SECRET_PARTS: &[&str] = &["pass", "pwd", "secret", "token", "seed", "credential"];
/// Whole names of such keys.
const SECRET_NAMES: &[&str] = &["key", "ek", "prev_key", "prev_ek", "encryption_key", "auth"];
/// Keys whose names only look like those.
const OPEN_NAMES: &[&str] = &["max_subscription_tokens", "max_sub_tokens"];
/// Characters between which values stand.
const BETWEEN: &[char] = &[',', ';', '{', '}', '[', ']', '(', ')', '"', '\''];
/// Letters and digits of a seed or hash, at least.
const SEED_CHARS_MIN: usize = 50;

/// Returns the text of a configuration file without secrets and comments.
pub(super) fn hidden_in_config(text: &str) -> String {
    let variables: BTreeSet<String> = text
        .split('$')
        .skip(1)
        .map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
        .filter(|name: &String| !name.is_empty())
        .map(|name| name.to_ascii_lowercase())
        .collect();
    Scanner { rest: text, out: String::new(), variables, is_config: true }.run()
}

/// Returns lines of a log, or a page, without secrets.
pub(super) fn hidden_in_text(text: &str) -> String {
    Scanner::of_text(text).run()
}

/// Returns the words of a command line without secrets.
pub(super) fn hidden_in_words(words: &[String]) -> Vec<String> {
    let mut is_value = false;
    let hide = |word: &String| {
        if std::mem::take(&mut is_value) {
            return HIDDEN.to_owned();
        }
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        if word.starts_with('-') && Scanner::of_text("").is_key(name) {
            is_value = !word.contains('=');
            return if value.is_empty() { word.clone() } else { format!("{name}={HIDDEN}") };
        }
        if is_secret(word) { HIDDEN.to_owned() } else { without_login(word) }
    };
    words.iter().map(hide).collect()
}

struct Scanner<'t> {
    rest: &'t str,
    out: String,
    variables: BTreeSet<String>,
    /// Whether a blank ends a key, and comments are left out.
    is_config: bool,
}

impl<'t> Scanner<'t> {
    fn of_text(rest: &'t str) -> Self {
        Self { rest, out: String::new(), variables: BTreeSet::new(), is_config: false }
    }

    fn run(mut self) -> String {
        while let Some(first) = self.rest.chars().next() {
            if self.is_config && (first == '#' || self.rest.starts_with("//")) {
                let line = self.rest.find('\n').unwrap_or(self.rest.len());
                self.rest = &self.rest[line..];
            } else if first == '"' || first == '\'' {
                let quoted = self.quoted(first);
                let inside = quoted.trim_matches(first);
                self.word(inside, quoted);
            } else if first.is_whitespace() || BETWEEN.contains(&first) || first == ':' {
                self.copy(first.len_utf8());
            } else {
                let word = self.bare();
                self.word(word, word);
            }
        }
        self.out
    }

    fn copy(&mut self, bytes: usize) {
        let (part, rest) = self.rest.split_at(bytes);
        self.out += part;
        self.rest = rest;
    }

    fn quoted(&self, quote: char) -> &'t str {
        let mut is_escaped = false;
        let ends = |(at, c): (usize, char)| {
            let ends = c == quote && !is_escaped;
            is_escaped = quote == '"' && c == '\\' && !is_escaped;
            ends.then_some(at + 1)
        };
        let end = self.rest.char_indices().skip(1).find_map(ends).unwrap_or(self.rest.len());
        &self.rest[..end]
    }

    /// A word without quotes: up to a blank, or the colon or equals sign of a key.
    fn bare(&self) -> &'t str {
        let ends = |(at, c): (usize, char)| {
            let is_url = self.rest[at..].starts_with("://");
            let ends = c.is_whitespace() || BETWEEN.contains(&c) || c == '=';
            (ends || c == ':' && !is_url && self.is_key(&self.rest[..at])).then_some(at)
        };
        let end = self.rest.char_indices().skip(1).find_map(ends).unwrap_or(self.rest.len());
        &self.rest[..end]
    }

    /// Writes a word, and nothing of its value if it is the key of a secret.
    fn word(&mut self, word: &str, written: &str) {
        self.rest = &self.rest[written.len()..];
        if self.is_key(word) {
            self.out += written;
            self.value();
        } else if is_secret(word) {
            self.out += HIDDEN;
        } else {
            self.out += &without_login(written);
        }
    }

    fn is_key(&self, word: &str) -> bool {
        let word = word.trim_start_matches('-').trim_end_matches(':').to_ascii_lowercase();
        let is_secret = SECRET_PARTS.iter().any(|part| word.contains(part))
            || SECRET_NAMES.contains(&word.as_str())
            || self.variables.contains(&word);
        is_secret && !OPEN_NAMES.contains(&word.as_str())
    }

    /// Copies what is between a key and its value, and hides the value, if one follows.
    fn value(&mut self) {
        // In a file a value may begin on a later line.
        let is_between = |c: char| {
            matches!(c, ':' | '=' | ' ' | '\t' | '"') || self.is_config && matches!(c, '\n' | '\r')
        };
        let end = self.rest.find(|c| !is_between(c)).unwrap_or(self.rest.len());
        let between = self.rest[..end].trim_end_matches('"');
        let assigns = between.contains([':', '=']);
        if !assigns && (!self.is_config || between.is_empty()) {
            return;
        }
        self.copy(between.len());
        let end = match self.rest.chars().next() {
            None | Some('{' | '[' | '}' | ']' | ',' | ';' | '\n' | '\r') => return,
            Some(quote @ ('"' | '\'')) => self.quoted(quote).len(),
            Some('(') => self.rest.find("\n)").map_or(self.rest.len(), |end| end + 2),
            Some(_) => {
                let ends = |c: char| c.is_whitespace() || matches!(c, ',' | ';' | '}' | ']');
                self.rest.find(ends).unwrap_or(self.rest.len())
            }
        };
        self.rest = &self.rest[end..];
        self.out += HIDDEN;
    }
}

/// Whether a word has the form of a secret: a seed, a token, a hash.
fn is_secret(word: &str) -> bool {
    let is_seed = word.split([':', '=']).any(|part| {
        part.len() >= SEED_CHARS_MIN
            && part.starts_with('S')
            && part.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit())
    });
    let is_token = word.starts_with("eyJ") && word.matches('.').count() == 2;
    let is_hash = word.starts_with("$2") && word.len() >= SEED_CHARS_MIN;
    is_seed || is_token || is_hash
}

/// Returns a text whose URLs have no names and passwords.
fn without_login(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    // A password may contain a slash or a comma: only another URL ends this one.
    let next = rest.find("://").and_then(|at| rest[..at].rfind([',', '"', '\'']));
    let (url, after) = rest.split_at(next.unwrap_or(rest.len()));
    let url = match url.rsplit_once('@') {
        Some((_, host)) => format!("{HIDDEN}@{host}"),
        None => url.to_owned(),
    };
    format!("{scheme}://{url}{}", without_login(after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_of_a_configuration_is_left() {
        let seed = format!("SU{}", "A".repeat(56));
        let hash = format!("$2a$10${}", "x".repeat(53));
        let text = format!(
            "# old password: hush\nport: 4222 // hush\n\
             authorization {{ user: ann, password: hush, timeout: 2 }}\n\
             authorization: {{ token = \"hush hush\" }}\nusers [{{user:a,password:'hush'}}]\n\
             \"pass\": \"hush\"\npass hush\nMINE: hush\nauthorization {{ password: $MINE }}\n\
             routes: [nats://ann:hush@h:1, \"nats-route://b:hush@i:2,nats://c:hush@j:3\"]\n\
             jetstream {{ key: hush, cipher: aes }}\nnkey: {seed}\nx: {hash}\n\
             jwt: eyJhush.eyJhush.hush\ncredentials: ./hush.creds\nremote_password (\nhush\n)\n"
        );
        let shown = hidden_in_config(&text);
        assert!(!shown.contains("hush") && !shown.contains(&seed), "{shown}");
        assert!(!shown.contains(&hash), "{shown}");
        for kept in ["port: 4222", "user: ann", "timeout: 2", "***@h:1", "***@j:3", "cipher: aes"] {
            assert!(shown.contains(kept), "{kept}: {shown}");
        }
    }

    #[test]
    fn quotes_lines_and_commas_within_a_secret_end_nothing() {
        let seed = "SUAGC3DPQXOOHGZ4LZ2U3OLWQVP6E2SRJRHR3QTWL5KRHUKSO7Z6A53V5M";
        let text = format!(
            "password: \"hu\\\"sh hush\"\npass\nhush\ntoken\n: hush\n\
             routes: [\"nats://ann:hu,hush@h:1,nats://b:hush@i:2\"]\nnkey:{seed}\n"
        );
        let shown = hidden_in_config(&text);
        assert!(!shown.contains("hush") && !shown.contains(seed), "{shown}");
        for kept in ["***@h:1", "***@i:2"] {
            assert!(shown.contains(kept), "{kept}: {shown}");
        }
        let log = r#"[TRC] <<- [CONNECT {"user":"a","pass":"a\"hush","lang":"rust"}]"#;
        let shown = hidden_in_text(log);
        assert!(!shown.contains("hush") && shown.contains("rust"), "{shown}");
    }

    #[test]
    fn a_command_line_is_hidden_word_by_word() {
        let words = [
            "shardcast",
            "--pass",
            "two hush",
            "--user",
            "ann",
            "--pass={x,hush",
            "--auth",
            "hush",
            "--routes",
            "nats://a:hush@h:1",
            "-p",
            "4222",
        ];
        let words: Vec<String> = words.map(str::to_owned).into();
        let shown = hidden_in_words(&words);
        assert!(shown.iter().all(|word| !word.contains("hush")), "{shown:?}");
        let kept = [
            "shardcast",
            "--pass",
            "***",
            "--user",
            "ann",
            "--pass=***",
            "--auth",
            "***",
            "--routes",
            "nats://***@h:1",
            "-p",
            "4222",
        ];
        assert_eq!(shown, kept);
    }

    #[test]
    fn what_is_no_secret_stays_as_it_is() {
        let text = "server_name: a\nlisten: 127.0.0.1:4222\nhttp: \"[::1]:8222\"\n\
                    max_subscription_tokens: 16\ntls { key_file: \"k.pem\", timeout: 2.5 }\n\
                    accounts { A { users: [{nkey: UABC}], exports: [{stream: \"a.>\"}] } }\n\
                    routes = [nats://h:1]\nno_auth_user: b\n";
        assert_eq!(hidden_in_config(text), text);
    }

    #[test]
    fn a_log_and_a_command_line_have_none_either() {
        let log = "[1] [WRN] Plaintext passwords detected, use nkeys\n[TRC] <<- [CONNECT \
                   {\"user\":\"a\",\"pass\":\"hush\",\"auth_token\":\"hush\"}] # more\n";
        let shown = hidden_in_text(log);
        assert!(!shown.contains("hush"), "{shown}");
        assert!(
            shown.starts_with("[1] [WRN] Plaintext passwords detected, use nkeys\n"),
            "{shown}"
        );
        assert!(shown.contains("\"user\":\"a\"") && shown.ends_with("# more\n"), "{shown}");
        let line = "shardcast --pass=hush --auth hush --cluster nats://a:hu/sh@h:1 -p 4222";
        let shown = hidden_in_config(line);
        assert_eq!(shown, "shardcast --pass=*** --auth *** --cluster nats://***@h:1 -p 4222");
    }
}
