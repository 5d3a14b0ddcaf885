//! What counts as a credential, and how keys and texts are taken out of a message.
//!
//! Options of a server can be read by every role, so nothing that looks like a credential may
//! stand in them; a vendor's error message may echo the key and the input, so both are removed
//! before anyone sees it. It never decides by the length of a message whether it is safe.

use std::collections::HashMap;

/// Pieces of an input text that are longer than this many bytes are removed from messages.
const HARMLESS_INPUT_BYTES: usize = 8;

/// Pieces of a key that are longer than this many bytes are removed: vendors echo the ends.
const HARMLESS_KEY_BYTES: usize = 3;

/// What stands for what was removed.
const REMOVED: &str = "[removed]";

/// Whether a header, a query key or a JSON member of this name would carry a credential:
/// `Authorization`, `x-api-key`, `access_token`, `cookie`, … but not `max_tokens`.
pub fn names_credential(name: &str) -> bool {
    let words = words(name);
    let joined = words.concat();
    let telling = [
        "authoriz",
        "apikey",
        "accesskey",
        "secret",
        "passw",
        "cookie",
        "credential",
        "bearer",
    ];
    telling.iter().any(|part| joined.contains(part))
        || words.iter().any(|word| {
            let whole = [
                "auth",
                "key",
                "pwd",
                "pass",
                "sig",
                "signature",
                "jwt",
                "session",
            ];
            whole.contains(&word.as_str()) || word.ends_with("token")
        })
}

/// Lower-case words of a name: `X-Api-Key`, `apiKey` and `api_key` have the same two at the end.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut after_lower = false;
    for c in name.chars() {
        let starts = !c.is_alphanumeric() || (c.is_uppercase() && after_lower);
        if starts && words.last().is_some_and(|word| !word.is_empty()) {
            words.push(String::new());
        }
        if c.is_alphanumeric()
            && let Some(word) = words.last_mut()
        {
            word.extend(c.to_lowercase());
        }
        after_lower = c.is_lowercase();
    }
    words
}

/// Whether a value looks like a credential whatever its name: `Bearer …`, `sk-…`, a JWT, …
pub fn looks_like_credential(value: &str) -> bool {
    let lower = value.trim_start().to_ascii_lowercase();
    let schemes = ["bearer ", "basic ", "digest ", "negotiate "];
    let prefixes = [
        ("sk-", 6),
        ("sk_", 12),
        ("pk_", 12),
        ("ghp_", 20),
        ("github_pat_", 20),
        ("glpat-", 16),
        ("hf_", 20),
        ("xoxb-", 12),
        ("xoxp-", 12),
        ("AKIA", 20),
        ("AIza", 30),
    ];
    schemes.iter().any(|scheme| lower.starts_with(scheme))
        || value
            .split(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c)))
            .any(|word| {
                let jwt = word.starts_with("eyJ") && word.matches('.').count() == 2;
                jwt || prefixes
                    .iter()
                    .any(|(prefix, least)| word.starts_with(prefix) && word.len() >= *least)
            })
}

/// `message` without any piece of a key or of an input: whatever run of bytes it shares with one
/// of them, if it is longer than what is harmless, is replaced by `[removed]`. Control characters
/// become spaces.
pub fn scrub<'a>(
    message: &str,
    keys: impl IntoIterator<Item = &'a str>,
    inputs: impl IntoIterator<Item = &'a str>,
) -> String {
    let mut marked = vec![false; message.len()];
    for key in keys {
        mark_shared(message, HARMLESS_KEY_BYTES + 1, key, &mut marked);
    }
    let pieces = pieces(message, HARMLESS_INPUT_BYTES + 1);
    for input in inputs {
        mark_pieces(&pieces, HARMLESS_INPUT_BYTES + 1, input, &mut marked);
    }
    let mut scrubbed = String::with_capacity(message.len());
    let mut removing = false;
    for (at, c) in message.char_indices() {
        let hit = marked
            .get(at..at + c.len_utf8())
            .is_none_or(|bytes| bytes.contains(&true));
        if hit && !removing {
            scrubbed.push_str(REMOVED);
        } else if !hit {
            scrubbed.push(if c.is_control() { ' ' } else { c });
        }
        removing = hit;
    }
    scrubbed
}

/// Where each run of `length` bytes of a message stands in it.
fn pieces(message: &str, length: usize) -> HashMap<&[u8], Vec<usize>> {
    let mut pieces: HashMap<&[u8], Vec<usize>> = HashMap::new();
    for (at, piece) in message.as_bytes().windows(length).enumerate() {
        pieces.entry(piece).or_default().push(at);
    }
    pieces
}

fn mark_pieces(
    pieces: &HashMap<&[u8], Vec<usize>>,
    length: usize,
    hidden: &str,
    marked: &mut [bool],
) {
    for piece in hidden.as_bytes().windows(length) {
        for &at in pieces.get(piece).into_iter().flatten() {
            if let Some(bytes) = marked.get_mut(at..at + length) {
                bytes.fill(true);
            }
        }
    }
}

fn mark_shared(message: &str, length: usize, hidden: &str, marked: &mut [bool]) {
    let length = length.min(hidden.len());
    if length > 0 {
        mark_pieces(&pieces(message, length), length, hidden, marked);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_carry_credentials_are_recognised() {
        for name in [
            "Authorization",
            "Proxy-Authorization",
            "api-key",
            "X-API-Key",
            "apiKey",
            "APIKEY",
            "x-goog-api-key",
            "Ocp-Apim-Subscription-Key",
            "key",
            "Cookie",
            "Set-Cookie",
            "access_token",
            "x-auth-token",
            "accessToken",
            "authtoken",
            "client_secret",
            "password",
            "sig",
            "auth",
        ] {
            assert!(names_credential(name), "{name}");
        }
    }

    #[test]
    fn names_that_only_sound_alike_are_not() {
        for name in [
            "max_tokens",
            "maxTokens",
            "max-completion-tokens",
            "tokenizer",
            "truncate",
            "input_type",
            "author",
            "X-Request-Id",
            "OpenAI-Organization",
            "keyboard",
            "api-version",
            "signal",
        ] {
            assert!(!names_credential(name), "{name}");
        }
    }

    #[test]
    fn values_that_are_credentials_are_recognised_under_any_name() {
        for value in [
            "Bearer abc",
            "basic dXNlcjpwYXNz",
            "sk-123456",
            "my sk-proj-abcdef key",
            "eyJhbGciOi.eyJzdWIi.sflKxw",
            "hf_abcdefghijklmnopqrst",
        ] {
            assert!(looks_like_credential(value), "{value}");
        }
        for value in ["passage", "task-12345678", "search_query", "END", "eyJust"] {
            assert!(!looks_like_credential(value), "{value}");
        }
    }

    #[test]
    fn a_message_loses_whole_and_partial_echoes() {
        let message = "key sk-abcdef123456 (sk-ab***3456) refused 'the secret diary of Adr…'";
        let scrubbed = scrub(
            message,
            ["sk-abcdef123456"],
            ["the secret diary of Adrian Mole, aged 13"],
        );
        assert_eq!(
            scrubbed,
            "key [removed] ([removed]***[removed]) refused '[removed]…'"
        );
    }

    #[test]
    fn short_inputs_and_other_words_stay() {
        assert_eq!(
            scrub("input 3 is too long", ["k"], ["long", "input"]),
            "input 3 is too long".replace('k', REMOVED)
        );
        assert_eq!(scrub("a\nb", [], []), "a b");
    }

    #[test]
    fn characters_of_several_bytes_are_removed_whole() {
        let scrubbed = scrub("echo: ありがとう!", [], ["ありがとうございます"]);
        assert_eq!(scrubbed, "echo: [removed]!");
    }
}
