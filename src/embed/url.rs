//! URLs of servers and proxies: http or https, with a host, without a credential.
//!
//! It never quotes a URL that it refuses, and it resolves nothing: where a host's name leads is
//! checked by [`super::hosts`] at each request.

use ureq::http::Uri;

use super::leak::{looks_like_credential, names_credential};
use super::options::{OptionError, credential, invalid};

/// A URL with a host, by http or https, that carries no credential. The errors do not quote it.
pub(crate) fn url(name: &str, value: &str) -> Result<Uri, OptionError> {
    let refuse = |detail: &str| {
        let hint = "Give a URL such as https://api.openai.com/v1.";
        Err(invalid(name, detail, hint))
    };
    let Ok(uri) = value.parse::<Uri>() else {
        return refuse("It is not a URL.");
    };
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return refuse("Only http and https are spoken.");
    }
    if uri
        .host()
        .is_none_or(|host| host.is_empty() || host == "[]")
    {
        return refuse("It names no host.");
    }
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    if authority.contains('@') {
        return Err(credential(name, "a user name or a password"));
    }
    if authority.ends_with(':') || (has_port(authority) && uri.port_u16().is_none()) {
        return refuse("Its port is not a number from 1 to 65535.");
    }
    if value.contains('#') {
        return refuse("It has a fragment (#).");
    }
    let query = uri.query().unwrap_or_default();
    let pairs = query
        .split(['&', ';'])
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    for (key, value) in pairs {
        if names_credential(&unescaped(key)) || looks_like_credential(&unescaped(value)) {
            return Err(credential(name, "a credential in its query"));
        }
    }
    if looks_like_credential(&unescaped(uri.path())) {
        return Err(credential(name, "a credential in its path"));
    }
    Ok(uri)
}

fn has_port(authority: &str) -> bool {
    let after_address = authority.rsplit(']').next().unwrap_or_default();
    after_address.contains(':')
}

/// The URL of a proxy: nothing but scheme, host and port.
pub(crate) fn proxy_url(name: &str, value: &str) -> Result<(), OptionError> {
    let uri = url(name, value)?;
    if uri.path().len() > 1 || uri.query().is_some() {
        let hint = "Give a URL such as http://proxy.internal:3128.";
        return Err(invalid(name, "It has a path or a query.", hint));
    }
    Ok(())
}

/// `%41` as `A`; what is no escape stays as it is.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let code = (byte == b'%')
            .then(|| tail.get(..2))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(code.unwrap_or(byte));
        rest = tail
            .get(if code.is_some() { 2 } else { 0 }..)
            .unwrap_or_default();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detail(value: &str) -> String {
        let error = url("url", value).unwrap_err();
        let shown = format!("{error} {:?} {:?}", error.detail, error.hint);
        assert!(!shown.contains("s3cr3t"), "{shown}");
        error.detail.unwrap()
    }

    #[test]
    fn urls_of_servers_are_accepted() {
        for value in [
            "https://api.openai.com/v1",
            "http://localhost:8080",
            "http://[::1]:11434/v1/",
            "https://x.openai.azure.com/openai/v1?api-version=2025-01-01",
            "http://10.0.0.7:80/embeddings",
        ] {
            assert!(url("url", value).is_ok(), "{value}");
        }
    }

    #[test]
    fn what_is_not_an_http_url_with_a_host_is_refused() {
        for value in [
            "",
            "api.openai.com",
            "/v1",
            "ftp://x/v1",
            "file:///etc/passwd",
            "http://",
            "http:///v1",
            "https://x:0x50/",
            "https://x:99999/",
            "https://x:/",
            "https://x/v1#part",
            "https://x y/",
        ] {
            detail(value);
        }
    }

    #[test]
    fn a_url_that_carries_a_credential_is_refused_unquoted() {
        for value in [
            "https://me:s3cr3t@x/v1",
            "https://s3cr3t@x/v1",
            "https://x/v1?api_key=s3cr3t",
            "https://x/v1?a=1&Api%2DKey=s3cr3t",
            "https://x/v1?access_token=s3cr3t",
            "https://x/v1?key=s3cr3t",
            "https://x/v1?a=sk-s3cr3t",
            "https://x/sk-s3cr3t/v1",
        ] {
            assert!(detail(value).contains("every role"), "{value}");
        }
    }

    #[test]
    fn a_proxy_is_scheme_host_and_port() {
        assert!(proxy_url("proxy", "http://proxy.internal:3128").is_ok());
        assert!(proxy_url("proxy", "http://proxy.internal:3128/").is_ok());
        for value in ["http://p/x", "http://p?x=1", "socks5://p:1", "http://me@p"] {
            assert!(proxy_url("proxy", value).is_err(), "{value}");
        }
    }
}
