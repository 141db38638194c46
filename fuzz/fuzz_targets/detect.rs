//! Any bytes as the first of a client. What was decided once is not decided otherwise by more bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use linkspan_gateway::detect::{MAX_PREFIX, Verdict, guess, verdict};

fuzz_target!(|bytes: &[u8]| {
    let bytes = &bytes[..bytes.len().min(MAX_PREFIX)];
    let mut decided = None;
    for length in 0..=bytes.len() {
        let prefix = &bytes[..length];
        let now = verdict(prefix);
        if let Verdict::Is(detected) = &now {
            assert_eq!(guess(prefix), *detected);
        }
        match &decided {
            Some(before) => assert_eq!(now, *before),
            None if now != Verdict::More => decided = Some(now),
            None => drop(guess(prefix)),
        }
    }
});
