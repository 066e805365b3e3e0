//! The service from outside: real TLS, real gRPC, the real program where it is killed.
#![forbid(unsafe_code)]

#[cfg(test)]
mod claims;
#[cfg(test)]
mod client;
#[cfg(test)]
mod kill;
#[cfg(test)]
mod service;
#[cfg(test)]
mod tickets;
