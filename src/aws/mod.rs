//! AWS: credentials, snapshots, images, parameters. Every call goes to one region of one account, through a client that
//! the caller is given; what is to be there is a [`crate::publish::Target`].

pub mod ask;
pub mod cloud;
pub mod copy;
pub mod credentials;
pub mod deliver;
pub mod endpoint;
pub mod error;
pub mod http;
pub mod iam;
pub mod image;
pub mod list;
pub mod observe;
pub mod preflight;
pub mod release;
pub mod retire;
pub mod retry;
pub mod signed;
pub mod snapshot;
pub mod together;
pub mod trust;

pub use cloud::{Cloud, Options, Region};
pub use error::{AwsError, Call, Kind};

/// The one runtime that all calls run on. Sends wait for the network more than they work, so few threads do.
///
/// # Errors
/// When the system has no threads left.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("aws")
        .enable_all()
        .build()
}
