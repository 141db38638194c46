//! The allocator of all Rust code in a program that uses this crate: jemalloc. C libraries (aws-lc) keep the C library's.
//!
//! A controller lives for months, and its largest moments (a peer of thousands of services comes, a leader starts) leave
//! holes that the C library's allocator keeps; a gateway takes and gives buffers on several threads all the time. How soon
//! free memory goes back to the system is set where jemalloc is built: `.cargo/config.toml`.

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;
