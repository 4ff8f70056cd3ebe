//! Paths of requests, cleaned as Go's HTTP server does: other paths are redirected to the clean
//! one.

use hyper::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use hyper::{Method, StatusCode};

use super::{HttpAnswer, answer};

/// Returns the path without empty, `.` and `..` parts; `None` if it has none of them.
pub(super) fn cleaned(path: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let mut clean = format!("/{}", parts.join("/"));
    if path.ends_with('/') && clean.len() > 1 {
        clean.push('/');
    }
    (clean != path).then_some(clean)
}

/// Returns an answer that redirects to another path, with a body in HTML if the method reads one.
pub(super) fn redirection(method: &Method, path: &str, query: Option<&str>) -> HttpAnswer {
    let location = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    let reads = [Method::GET, Method::HEAD].contains(method);
    let body = match reads {
        true => {
            let escaped = escaped(&location);
            format!("<a href=\"{escaped}\">Temporary Redirect</a>.\n\n")
        }
        false => String::new(),
    };
    let html = HeaderValue::from_static("text/html; charset=utf-8");
    let mut answer = answer(StatusCode::TEMPORARY_REDIRECT, html, body);
    if !reads {
        answer.headers_mut().remove(CONTENT_TYPE);
    }
    if let Ok(location) = HeaderValue::from_str(&location) {
        answer.headers_mut().insert(LOCATION, location);
    }
    answer
}

/// Escapes text for an HTML attribute.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&#34;"),
            '\'' => escaped.push_str("&#39;"),
            char => escaped.push(char),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_untidy_paths_are_tidied() {
        for tidy in ["/", "/varz", "/ops/nats/varz", "/varz/", "/a.b/..c"] {
            assert_eq!(cleaned(tidy), None, "{tidy}");
        }
        for (path, tidy) in [
            ("//varz", "/varz"),
            ("/./varz", "/varz"),
            ("/a/../varz", "/varz"),
            ("/../../varz", "/varz"),
            ("/varz//", "/varz/"),
            ("//", "/"),
            ("/..", "/"),
            ("", "/"),
            ("*", "/*"),
        ] {
            assert_eq!(cleaned(path).as_deref(), Some(tidy), "{path}");
        }
    }

    #[test]
    fn what_was_asked_for_cannot_break_out_of_the_page() {
        let query = Some("a=\"><b>&c='d'");
        let answer = redirection(&Method::GET, "/varz", query);
        let body = std::str::from_utf8(answer.body()).unwrap();
        let wanted = "<a href=\"/varz?a=&#34;&gt;&lt;b&gt;&amp;c=&#39;d&#39;\">";
        assert!(body.starts_with(wanted), "{body}");
    }
}
