//! Publishing, against the local AWS of `scripts/aws-local`.

mod credentials;
mod guide;
mod images;
#[allow(dead_code)]
pub mod local;
mod publish;
mod real;
mod transport;
mod upload;
pub mod wire;
