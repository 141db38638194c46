//! Standalone sites end to end: real programs on hosts of their own, linked by the commands that users type.
//!
//! One program with many modules, so that it links once. Each module is named by what it proves.

mod sites {
    mod kit;

    mod http;

    mod tcp;

    mod udp;

    mod identity;

    mod weights;

    mod tiers;

    mod faults;

    mod causes;

    mod limits;

    mod patterns;

    mod cycles;

    mod scale;

    mod drain;

    mod carrier;

    mod nat;

    mod reach;

    mod hostile;

    mod lifecycle;

    mod cli;

    mod figures;

    mod demo;

    mod readme;

    mod systemd;

    mod benches;
}
