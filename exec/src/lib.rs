//! Run bundles.
