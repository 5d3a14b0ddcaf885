//! From method, path and key to what is asked. It never reads a body and never answers.

use crate::error::ApiError;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ask {
    Embeddings,
    Models,
    Stats,
}

impl Ask {
    /// The one method that asks for it.
    pub fn method(self) -> &'static str {
        match self {
            Ask::Embeddings => "POST",
            Ask::Models | Ask::Stats => "GET",
        }
    }
}

/// Finds what is asked, whatever the method.
///
/// # Errors
/// 404 for an unknown path.
pub fn find(method: &str, url: &str) -> Result<Ask, ApiError> {
    let path = url.split('?').next().unwrap_or_default();
    match path {
        "/v1/embeddings" => Ok(Ask::Embeddings),
        "/v1/models" => Ok(Ask::Models),
        "/stats" => Ok(Ask::Stats),
        _ => Err(ApiError::refused(
            404,
            Some("unknown_url"),
            format!("Invalid URL ({method} {path})"),
        )),
    }
}

/// Refuses a method that the path does not have.
///
/// # Errors
/// 405.
pub fn check_method(ask: Ask, method: &str) -> Result<(), ApiError> {
    if method == ask.method() {
        return Ok(());
    }
    Err(ApiError::refused(
        405,
        Some("method_not_supported"),
        format!("{method} is not allowed here; use {}.", ask.method()),
    ))
}

/// Refuses a request without the key, if there is one. `/stats` needs none: it is not part of the
/// API.
///
/// # Errors
/// 401.
pub fn check_key(
    ask: Ask,
    api_key: Option<&str>,
    authorization: Option<&str>,
) -> Result<(), ApiError> {
    let (Some(key), Ask::Embeddings | Ask::Models) = (api_key, ask) else {
        return Ok(());
    };
    let given = authorization.and_then(|header| {
        let (scheme, given) = header.trim().split_once(' ')?;
        scheme
            .eq_ignore_ascii_case("bearer")
            .then(|| given.trim_start())
    });
    match given {
        Some(given) if given == key => Ok(()),
        Some(_) => Err(ApiError::refused(
            401,
            Some("invalid_api_key"),
            "Incorrect API key provided.",
        )),
        None => Err(ApiError::refused(
            401,
            None,
            "You didn't provide an API key. Provide it in an Authorization header using Bearer \
             auth (i.e. Authorization: Bearer YOUR_KEY).",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_found_with_and_without_a_query() {
        assert_eq!(find("POST", "/v1/embeddings"), Ok(Ask::Embeddings));
        assert_eq!(find("POST", "/v1/embeddings?a=b"), Ok(Ask::Embeddings));
        assert_eq!(find("GET", "/v1/models"), Ok(Ask::Models));
        assert_eq!(find("GET", "/stats"), Ok(Ask::Stats));
        for path in ["/", "/v1", "/v1/embeddings/", "/v1/chat/completions", ""] {
            assert_eq!(find("GET", path).unwrap_err().status, 404);
        }
    }

    #[test]
    fn a_wrong_method_is_refused() {
        assert_eq!(check_method(Ask::Embeddings, "POST"), Ok(()));
        assert_eq!(check_method(Ask::Stats, "GET"), Ok(()));
        for (ask, method) in [(Ask::Embeddings, "GET"), (Ask::Models, "POST")] {
            assert_eq!(check_method(ask, method).unwrap_err().status, 405);
        }
    }

    #[test]
    fn a_key_is_asked_for_only_where_one_is_set() {
        let check = |header| check_key(Ask::Embeddings, Some("sk-1"), header);
        assert_eq!(check(Some("Bearer sk-1")), Ok(()));
        assert_eq!(check(Some("bearer  sk-1")), Ok(()));
        for wrong in [
            None,
            Some("sk-1"),
            Some("Basic sk-1"),
            Some("Bearer sk-2"),
            Some("Bearer "),
        ] {
            assert_eq!(check(wrong).unwrap_err().status, 401, "{wrong:?}");
        }
        assert_eq!(check_key(Ask::Embeddings, None, None), Ok(()));
        assert_eq!(check_key(Ask::Stats, Some("sk-1"), None), Ok(()));
    }

    #[test]
    fn a_refusal_never_repeats_a_key() {
        let error = check_key(Ask::Models, Some("sk-right"), Some("Bearer sk-wrong")).unwrap_err();
        assert!(!error.body().contains("sk-"));
    }
}
