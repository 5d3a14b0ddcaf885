//! Keys, read by name at the moment they are needed, from one directory or from environment
//! variables that are released for it.
//!
//! A key never stands in a catalog, a setting or a message: [`Secret`] cannot be displayed, and
//! its Debug form is a placeholder.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::endpoint::{Endpoint, KeySource};
use super::failure::Failure;
use super::{leak, options};

/// No key or set of headers is longer; a larger file is not one.
const MAX_SECRET_BYTES: u64 = 64 * 1024;
/// The bundles of public authorities are a quarter of a megabyte.
const MAX_CA_BYTES: u64 = 4 * 1024 * 1024;

/// Where keys may be read, and where requests may go: the settings that an endpoint is used under.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretPolicy {
    /// `recsync.secret_directory`: the only directory that keys are read from.
    pub directory: PathBuf,
    /// `recsync.secret_env_allow`: names of environment variables, exact or with a leading `*`.
    pub env_allow: Vec<String>,
    /// `recsync.allowed_hosts`: see [`super::hosts`].
    pub allowed_hosts: Vec<String>,
    /// The data directory: whoever can write files there must not be able to plant a key.
    pub forbidden_directory: Option<PathBuf>,
}

/// A key or the value of a secret header.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The key itself, for the header of a request and for removing it from messages.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret([removed])")
    }
}

/// What a request to an endpoint is authorised by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// Sent in the header that the API names.
    pub key: Option<Secret>,
    /// Headers of the endpoint's header file.
    pub headers: Vec<(String, Secret)>,
}

impl Credentials {
    pub(crate) fn read(endpoint: &Endpoint, policy: &SecretPolicy) -> Result<Credentials, Failure> {
        let key = endpoint.key.as_ref();
        let file = endpoint.header_file.as_deref();
        Ok(Credentials {
            key: key.map(|source| read_key(source, policy)).transpose()?,
            headers: file.map_or(Ok(Vec::new()), |name| read_headers(name, policy))?,
        })
    }

    /// Everything that must not show in a message. A header's value counts by its words, too:
    /// `Bearer abc` may come back as `abc`.
    pub(crate) fn hidden(&self) -> impl Iterator<Item = &str> {
        let headers = self.headers.iter().map(|(_, value)| value.expose());
        let words = headers.flat_map(|value| {
            let words = value.split_ascii_whitespace();
            words.filter(|word| !matches!(*word, "Bearer" | "Basic" | "Token"))
        });
        self.key.iter().map(Secret::expose).chain(words)
    }
}

/// Reads a key.
///
/// # Errors
/// A configuration failure that names the file or variable, never its content: outside the
/// directory, not a regular file, readable by group or world, empty, longer than 64 KiB, not one
/// line of printable ASCII; a variable that is not released or not set.
pub fn read_key(source: &KeySource, policy: &SecretPolicy) -> Result<Secret, Failure> {
    let (text, what) = match source {
        KeySource::File(name) => (
            read_secret_file(name, policy)?,
            format!("key file \"{name}\""),
        ),
        KeySource::Environment(name) => (
            read_variable(name, policy)?,
            format!("environment variable \"{name}\""),
        ),
    };
    let key = text.trim();
    if key.is_empty() {
        return Err(Failure::configuration(format!("{what} is empty")));
    }
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Failure::configuration(format!(
            "{what} is not one line of printable characters"
        )));
    }
    Ok(Secret(key.to_owned()))
}

/// Headers of a file under the secret directory, one `Name: value` a line.
fn read_headers(name: &str, policy: &SecretPolicy) -> Result<Vec<(String, Secret)>, Failure> {
    let text = read_secret_file(name, policy)?;
    let lines = text.lines().map(str::trim);
    let mut headers = Vec::new();
    for (number, line) in (1..).zip(lines) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let header = line
            .split_once(':')
            .map(|(name, value)| (name.trim(), value.trim()))
            .filter(|(name, value)| options::header(name, value).is_some());
        let Some((header_name, value)) = header else {
            return Err(Failure::configuration(format!(
                "line {number} of header file \"{name}\" is not \"Name: value\" of a header that may be set"
            )));
        };
        headers.push((header_name.to_owned(), Secret(value.to_owned())));
    }
    Ok(headers)
}

fn read_variable(name: &str, policy: &SecretPolicy) -> Result<String, Failure> {
    let released = policy.env_allow.iter().any(|pattern| {
        pattern
            .strip_prefix('*')
            .map_or(name == pattern, |suffix| name.ends_with(suffix))
    });
    if !released {
        return Err(Failure::configuration(format!(
            "environment variable \"{name}\" is not listed in recsync.secret_env_allow"
        )));
    }
    std::env::var(name)
        .map_err(|_| Failure::configuration(format!("environment variable \"{name}\" is not set")))
}

fn read_secret_file(name: &str, policy: &SecretPolicy) -> Result<String, Failure> {
    let refuse = |why: &str| {
        Err(Failure::configuration(format!(
            "secret file \"{name}\" {why}"
        )))
    };
    if !options::is_below(name) || leak::looks_like_credential(name) {
        return Err(Failure::configuration(
            "the name of a secret file is not a path below recsync.secret_directory",
        ));
    }
    let Ok(directory) = policy.directory.canonicalize() else {
        return Err(Failure::configuration(
            "recsync.secret_directory does not exist or cannot be read",
        ));
    };
    let path = match directory.join(name).canonicalize() {
        Ok(path) => path,
        Err(error) => return refuse(&format!("cannot be read: {}", error.kind())),
    };
    if !path.starts_with(&directory) {
        return refuse("lies outside recsync.secret_directory");
    }
    let forbidden = policy.forbidden_directory.as_deref();
    if forbidden.is_some_and(|forbidden| is_inside(&path, forbidden)) {
        return refuse("lies inside the data directory");
    }
    let file = match open(&path) {
        Ok(file) => file,
        Err(error) => return refuse(&format!("cannot be read: {}", error.kind())),
    };
    match file.metadata() {
        Ok(metadata) if !metadata.is_file() => refuse("is not a regular file"),
        Ok(metadata) if metadata.mode() & 0o077 != 0 => {
            refuse("can be read or written by group or world; chmod 600 it")
        }
        Ok(_) => read_text(file, MAX_SECRET_BYTES).or_else(|why| refuse(&why)),
        Err(error) => refuse(&format!("cannot be read: {}", error.kind())),
    }
}

/// The certificates of `ca_file`: an absolute path, or one below the secret directory.
pub(crate) fn read_ca_file(path: &str, policy: &SecretPolicy) -> Result<String, Failure> {
    let refuse = |why: &str| Failure::configuration(format!("ca_file \"{path}\" {why}"));
    let unreadable = |error: std::io::Error| refuse(&format!("cannot be read: {}", error.kind()));
    let path = policy.directory.join(path);
    let path = path.canonicalize().map_err(unreadable)?;
    let file = open(&path).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(refuse("is not a regular file"));
    }
    read_text(file, MAX_CA_BYTES).map_err(|why| refuse(&why))
}

fn is_inside(path: &Path, directory: &Path) -> bool {
    let canonical = directory.canonicalize();
    path.starts_with(canonical.as_deref().unwrap_or(directory))
}

/// Opens without following a link that was put there since, and without waiting for a pipe.
fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
}

fn read_text(file: File, limit: u64) -> Result<String, String> {
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("cannot be read: {}", error.kind()))?;
    if bytes.len() as u64 > limit {
        return Err(format!("is larger than {} KiB", limit / 1024));
    }
    String::from_utf8(bytes).map_err(|_| "is not text".to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::embed::failure::Class;
    use crate::embed::testing::Directory;

    fn file(name: &str) -> KeySource {
        KeySource::File(name.to_owned())
    }

    fn refusal(source: &KeySource, policy: &SecretPolicy) -> String {
        let failure = read_key(source, policy).unwrap_err();
        assert_eq!(failure.class, Class::Configuration);
        assert!(!failure.message.contains("s3cr3t"), "{}", failure.message);
        failure.message
    }

    #[test]
    fn a_key_is_the_trimmed_line_of_a_private_file() {
        let directory = Directory::new();
        directory.write("sub/openai.key", "  s3cr3t-key\n", 0o600);
        let key = read_key(&file("sub/openai.key"), &directory.policy()).unwrap();
        assert_eq!(key.expose(), "s3cr3t-key");
        assert_eq!(format!("{key:?}"), "Secret([removed])");
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let directory = Directory::new();
        for mode in [0o640, 0o604, 0o660, 0o644] {
            directory.write("k", "s3cr3t", mode);
            assert!(refusal(&file("k"), &directory.policy()).contains("group or world"));
        }
    }

    #[test]
    fn a_path_or_link_that_leaves_the_directory_is_refused() {
        let directory = Directory::new();
        let outside = Directory::new();
        outside.write("k", "s3cr3t", 0o600);
        symlink(outside.path().join("k"), directory.path().join("link")).unwrap();
        assert!(refusal(&file("link"), &directory.policy()).contains("outside"));
        let absolute = outside.path().join("k").to_string_lossy().into_owned();
        for name in ["../k", absolute.as_str(), "", ".", "a/../../k", "k/"] {
            let message = refusal(&file(name), &directory.policy());
            assert!(message.contains("not a path below"), "{name}: {message}");
        }
    }

    #[test]
    fn a_link_that_stays_in_the_directory_is_followed() {
        let directory = Directory::new();
        directory.write("..data/k", "s3cr3t", 0o400);
        symlink("..data/k", directory.path().join("k")).unwrap();
        assert!(read_key(&file("k"), &directory.policy()).is_ok());
    }

    #[test]
    fn a_key_inside_the_data_directory_is_refused() {
        let directory = Directory::new();
        directory.write("base/k", "s3cr3t", 0o600);
        let policy = SecretPolicy {
            forbidden_directory: Some(directory.path().join("base")),
            ..directory.policy()
        };
        assert!(refusal(&file("base/k"), &policy).contains("data directory"));
    }

    #[test]
    fn what_is_no_key_is_refused_without_waiting_for_it() {
        let directory = Directory::new();
        let policy = directory.policy();
        directory.write("empty", " \n", 0o600);
        directory.write("lines", "s3cr3t\nX-Injected: 1", 0o600);
        directory.write("huge", &"x".repeat(64 * 1024 + 1), 0o600);
        fs::create_dir(directory.path().join("d")).unwrap();
        fs::set_permissions(
            directory.path().join("d"),
            fs::Permissions::from_mode(0o700),
        )
        .unwrap();
        let fifo = directory.path().join("fifo");
        let made = std::process::Command::new("mkfifo")
            .args(["-m", "600"])
            .arg(&fifo)
            .status();
        assert!(made.unwrap().success());
        for (name, why) in [
            ("empty", "is empty"),
            ("lines", "one line"),
            ("huge", "larger than 64 KiB"),
            ("d", "not a regular file"),
            ("fifo", "not a regular file"),
            ("none", "entity not found"),
        ] {
            let message = refusal(&file(name), &policy);
            assert!(message.contains(why), "{name}: {message}");
        }
    }

    #[test]
    fn only_released_environment_variables_are_read() {
        let directory = Directory::new();
        let allowed = |patterns: &[&str]| SecretPolicy {
            env_allow: patterns.iter().map(|p| (*p).to_owned()).collect(),
            ..directory.policy()
        };
        let path = KeySource::Environment("PATH".to_owned());
        assert!(read_key(&path, &allowed(&["*_API_KEY", "*TH"])).is_ok());
        assert!(read_key(&path, &allowed(&["PATH"])).is_ok());
        for patterns in [&["*_API_KEY"][..], &[], &["PA*"]] {
            assert!(refusal(&path, &allowed(patterns)).contains("secret_env_allow"));
        }
        let none = KeySource::Environment("RECSYNC_TEST_NONE_API_KEY".to_owned());
        assert!(refusal(&none, &allowed(&["*_API_KEY"])).contains("not set"));
    }

    #[test]
    fn a_header_file_holds_one_header_a_line() {
        let directory = Directory::new();
        directory.write(
            "h",
            "# secret\n\nX-Auth: Bearer s3cr3t-1\napi-key: s3cr3t-2\n",
            0o600,
        );
        let headers = read_headers("h", &directory.policy()).unwrap();
        let credentials = Credentials { key: None, headers };
        assert_eq!(
            credentials.hidden().collect::<Vec<_>>(),
            ["s3cr3t-1", "s3cr3t-2"]
        );
        for (number, text) in [(1, "s3cr3t"), (2, "A: b\nHost: s3cr3t"), (1, "a b: s3cr3t")] {
            directory.write("h", text, 0o600);
            let failure = read_headers("h", &directory.policy()).unwrap_err();
            assert!(failure.message.starts_with(&format!("line {number} ")));
            assert!(!failure.message.contains("s3cr3t"));
        }
    }
}
