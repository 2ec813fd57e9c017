//! Tunnels over loopback with real TLS: an app on each side, and everything in between as in the product.

mod apps;
mod bulk;
mod early;
mod floods;
mod trust;
mod tunnels;
mod world;
