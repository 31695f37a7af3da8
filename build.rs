//! Gives each step of a bake the digest of the code that does it, so that a result made by other code is never taken
//! for its own: the code is an input like everything else.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// The steps whose results are kept, and the sources (below `src/`) that shape them.
const STEPS: [(&str, &[&str]); 5] = [
    ("PACKAGES", &["sandbox", "host/sys.rs", "source/debian/deb.rs", "source/debian/dpkg.rs", "tree.rs"]),
    ("TREE", &["rootfs", "sandbox", "boot", "layout", "format", "tree.rs", "system.rs", "bake"]),
    ("DISK", &["image", "boot", "layout", "format", "tree.rs"]),
    ("TEST", &["vm", "check"]),
    ("EXPORT", &["export.rs", "export", "format"]),
];

fn main() {
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

fn collect(path: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(path) else {
        files.extend(path.is_file().then(|| path.to_owned()));
        return;
    };
    for entry in entries.flatten() {
        collect(&entry.path(), files);
    }
}
