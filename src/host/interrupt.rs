//! Ctrl-C and SIGTERM as a flag that long loops look at.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();

fn flag() -> &'static Arc<AtomicBool> {
    FLAG.get_or_init(Arc::default)
}

/// The user asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// From now on SIGINT, SIGTERM and SIGHUP raise the flag; a second one of them ends the process at once with status 130.
///
/// # Errors
/// When the handlers can't be installed.
pub fn install() -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, flag().clone())?;
        signal_hook::flag::register(signal, flag().clone())?;
    }
    Ok(())
}

/// Fails once the user asked to stop. Loops that take longer than a blink call it.
///
/// # Errors
/// [`Interrupted`] when a signal came.
pub fn check() -> Result<(), Interrupted> {
    if flag().load(Ordering::Relaxed) { Err(Interrupted) } else { Ok(()) }
}
