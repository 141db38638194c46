//! Linkspan on Kubernetes end to end: two real clusters with the same pod and service addresses, linked by one UDP port.
//!
//! One program with many modules, so that it links once and starts one test bed. `tests/kubernetes/README.md` maps the
//! behaviours that users rely on to the tests here.

mod kubernetes {
    mod kit;

    mod mirrors;

    mod clusterset;

    mod conflicts;

    mod policy;

    mod headless;

    mod definitions;

    mod links;

    mod faults;

    mod kills;

    mod rolling;

    mod quiet;

    mod scale;

    mod commands;

    mod readme;

    mod chart;

    mod causes;

    mod rights;

    mod verbs;
}
