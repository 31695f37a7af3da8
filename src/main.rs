//! Parse, run, exit.

use std::process::{ExitCode, Termination};

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    if args.get(1).is_some_and(|a| a == "internal") {
        return kiln::cli::internal::main(&args[2..]);
    }
    kiln::cli::main(args).report()
}
