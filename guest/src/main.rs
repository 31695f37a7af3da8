//! The guest's side of Kiln: the initrd's first process, and `/usr/bin/kiln` of the running system.

use std::path::Path;

fn main() {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_default();
    if std::process::id() == 1 && Path::new(&program).file_name().is_some_and(|name| name == "init") {
        kiln_guest::init::run();
    }
    let arguments: Vec<String> = arguments.map(|a| a.to_string_lossy().into_owned()).collect();
    std::process::exit(kiln_guest::cli::run(&arguments));
}
