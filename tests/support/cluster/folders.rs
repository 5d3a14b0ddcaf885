//! Where clusters are: in a folder of this process's, which ends with it.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::{env, fs};

use super::programs::{bin, initdb, run};
use super::user::{own, server_user};

/// Whether a cluster of this process outlives it.
pub static KEPT: AtomicBool = AtomicBool::new(false);

/// For a cluster.
pub fn new_directory() -> PathBuf {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let directory = base().join(NUMBER.fetch_add(1, Ordering::Relaxed).to_string());
    fs::create_dir(&directory).unwrap();
    directory
}

/// A folder of this test run's, which ends with it.
fn base() -> &'static Path {
    static BASE: OnceLock<PathBuf> = OnceLock::new();
    BASE.get_or_init(|| {
        // The path of a socket must stay short, and root's TMPDIR is often closed to others.
        let given = env::temp_dir();
        let fits = given.as_os_str().len() <= 60
            && server_user().is_none_or(|user| user.may_enter(&given));
        let parent = if fits { given } else { PathBuf::from("/tmp") };
        let base = parent.join(format!("recsync-{}", std::process::id()));
        let _ = fs::remove_dir_all(&base);
        fs::create_dir(&base)
            .unwrap_or_else(|error| panic!("cannot make {}: {error}", base.display()));
        own(&base);
        // SAFETY: the handler is a plain function that removes a folder.
        unsafe { libc::atexit(remove_base) };
        base
    })
}

extern "C" fn remove_base() {
    super::super::database::remove_shared();
    let all = !KEPT.load(Ordering::Relaxed);
    let _ = fs::remove_dir_all(if all { base() } else { template() });
}

/// An initialised data directory that every cluster begins as a copy of.
pub fn template() -> &'static Path {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let template = base().join("template");
        run(&mut initdb(bin(), &template));
        template
    })
}
