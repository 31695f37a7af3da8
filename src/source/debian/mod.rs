//! Debian: indexes, signatures, resolution, `.deb` files, the dpkg database.
