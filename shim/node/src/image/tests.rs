//! The store as a whole, on real directories: images from layouts and registries, hostile layers,
//! lying registries, kills. They need root, as the store does.

mod build;
mod crash;
mod good;
mod hostile;
mod properties;
mod registries;
