//! `kiln internal …`: what Kiln runs of itself in a child process. Not for users, and no part of the interface.

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the child's part named by `args` (all that follows `internal`).
pub fn main(args: &[OsString]) -> ExitCode {
    if let Some(code) = crate::profile::child_main(args).or_else(|| crate::sandbox::child_main(args)) {
        return code;
    }
    let part = args.first().and_then(|a| a.to_str()).unwrap_or_default();
    match part {
        crate::vm::launch::PART => crate::vm::launch::main(&args[1..]),
        super::internal_aws::PART => super::internal_aws::main(&args[1..]),
        super::internal_upload::PART => super::internal_upload::main(&args[1..]),
        crate::vm::netns::PART => crate::vm::netns::inner::main(&args[1..]),
        _ => {
            super::report::tell(format_args!("kiln internal: no part is named `{part}`"));
            ExitCode::from(2)
        }
    }
}
