//! Gives each step of a bake the digest of the code that does it, so that a result made by other code is never taken
//! for its own: the code is an input like everything else.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

/// The steps whose results are kept, and the sources (below `src/`) that shape them.
const STEPS: [(&str, &[&str]); 6] = [
    ("PACKAGES", &["sandbox", "host/sys.rs", "source/debian/deb.rs", "source/debian/dpkg.rs", "tree.rs"]),
    ("TREE", &["rootfs", "sandbox", "boot", "layout", "format", "tree.rs", "system.rs", "bake"]),
    ("SYSTEM", &["image", "boot", "layout", "format", "tree.rs", "../guest/src"]),
    (
        "DISK",
        &[
            "image",
            "boot",
            "layout",
            "format",
            "tree.rs",
            "publish/holes.rs",
            "publish/blocks.rs",
            "../guest/src",
        ],
    ),
    ("TEST", &["vm", "check"]),
    ("EXPORT", &["export.rs", "export", "format"]),
];

/// The machines for which images are made: the guest's program is built for them.
const GUEST_TARGET: &str = "x86_64-unknown-linux-musl";
/// What of the environment finds the compiler; nothing else may shape the guest's program.
const TOOLCHAIN: [&str; 6] = ["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN", "RUSTC"];

fn main() {
    guest();
    let src = Path::new("src");
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rerun-if-changed=Cargo.lock");
    // Libraries that compress or write formats shape bytes as well. A packaged source may lack the file.
    let libraries = fs::read("Cargo.lock").unwrap_or_default();
    for (step, sources) in STEPS {
        let mut files = Vec::new();
        for source in sources {
            collect(&src.join(source), &mut files);
        }
        files.sort();
        let mut hasher = Sha256::new();
        hasher.update(&libraries);
        for file in files {
            let bytes = fs::read(&file).unwrap_or_default();
            hasher.update(file.to_string_lossy().as_bytes());
            hasher.update((bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        }
        let digest: String = hasher.finalize().iter().take(16).map(|b| format!("{b:02x}")).collect();
        println!("cargo::rustc-env=KILN_CODE_{step}={digest}");
    }
}

/// Builds the program that runs inside images, for [`crate::guest`]: statically linked, the same bytes in every folder.
fn guest() {
    for input in ["guest/src", "guest/Cargo.toml", "Cargo.toml"] {
        println!("cargo::rerun-if-changed={input}");
    }
    let variable = |name: &str| PathBuf::from(env::var_os(name).expect("cargo sets it"));
    let (out, source) = (variable("OUT_DIR"), variable("CARGO_MANIFEST_DIR"));
    let target = out.join("guest");
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo"))).unwrap_or_default();
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let flags = [remap(&target, "/target"), remap(&source, "/kiln"), remap(&home, "/cargo")].join("\x1f");
    let status = Command::new(variable("CARGO"))
        .args(["build", "--quiet", "--locked", "--package", "kiln-guest", "--bin", "kiln-guest"])
        .args(["--profile", "guest", "--target", GUEST_TARGET, "--target-dir"])
        .arg(&target)
        .env_clear()
        .envs(TOOLCHAIN.iter().filter_map(|name| Some((name, env::var_os(name)?))))
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .current_dir(&source)
        .status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "the program for images can't be built; the compiler needs the target {GUEST_TARGET}: run scripts/setup, or \
         `rustup target add {GUEST_TARGET}`"
    );
    let built = target.join(GUEST_TARGET).join("guest/kiln-guest");
    fs::copy(&built, out.join("kiln-guest")).expect("what was built");
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(path) else {
        files.extend(path.is_file().then(|| path.to_owned()));
        return;
    };
    for entry in entries.flatten() {
        collect(&entry.path(), files);
    }
}
