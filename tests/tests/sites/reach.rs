//! see reach
