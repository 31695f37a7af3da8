//! The guest's side of Kiln: the initrd's first process, and `/usr/bin/kiln` of the running system.

use std::path::Path;

fn main() {
    let program = std::env::args_os().next().unwrap_or_default();
    if std::process::id() == 1 && Path::new(&program).file_name().is_some_and(|name| name == "init") {
        kiln_guest::init::run();
    }
}
