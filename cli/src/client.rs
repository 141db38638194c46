//! Asks a running site: its folder, its admin listener, its DNS server.
