//! Who runs PostgreSQL when the tests run as root. It never changes who runs the tests.

use std::ffi::CString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::{env, fs};

/// Who runs PostgreSQL when the tests run as root, which it refuses.
pub struct ServerUser {
    uid: u32,
    gid: u32,
}

impl ServerUser {
    pub fn may_enter(&self, directory: &Path) -> bool {
        use std::os::unix::fs::MetadataExt;
        directory.ancestors().all(|directory| {
            fs::metadata(directory).is_ok_and(|found| {
                let mode = found.mode();
                mode & 0o001 != 0 || (found.uid() == self.uid && mode & 0o100 != 0)
            })
        })
    }
}

pub fn server_user() -> Option<&'static ServerUser> {
    static USER: OnceLock<Option<ServerUser>> = OnceLock::new();
    USER.get_or_init(|| {
        // SAFETY: a system call that cannot fail.
        if unsafe { libc::geteuid() } != 0 {
            return None;
        }
        ["postgres", "nobody"].iter().find_map(|name| {
            let name = CString::new(*name).unwrap();
            // SAFETY: a NUL-terminated name; the static record is read before anybody else asks (inside get_or_init).
            unsafe { libc::getpwnam(name.as_ptr()).as_ref() }.map(|found| ServerUser {
                uid: found.pw_uid,
                gid: found.pw_gid,
            })
        })
    })
    .as_ref()
}

pub fn as_server_user(command: &mut Command) {
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("LC_ALL", "C")
        .current_dir("/");
    for name in ["LD_LIBRARY_PATH", "TMPDIR"] {
        if let Ok(value) = env::var(name) {
            command.env(name, value);
        }
    }
    if let Some(user) = server_user() {
        command.uid(user.uid).gid(user.gid);
    }
}

/// Gives it to whoever runs PostgreSQL.
pub fn own(path: &Path) {
    if let Some(user) = server_user() {
        std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid)).unwrap();
    }
}
