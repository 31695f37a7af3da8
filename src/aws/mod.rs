//! AWS: credentials, snapshots, images, parameters. Every call goes to one region of one account, through a client that
//! the caller is given; what is to be there is a [`crate::publish::Target`].
