//! Downloads: mirrors in turn, resume, verification by digest.
//!
//! Where bytes come from is transport and never an input: every byte is checked against a digest or a signature before
//! it gets its final name. [`Mirrors`] knows the addresses, [`download`] brings files, [`Remote`] brings what is not
//! named by a digest yet (the signed Release files) and the indexes that those name.

mod apt;
mod download;
mod http;
mod mirrors;
mod remote;

pub use download::{Download, FetchError, Options, Progress, download};
pub use http::{Client, HttpError};
pub use mirrors::{Environment, Mirrors, MirrorsError};
pub use remote::Remote;
