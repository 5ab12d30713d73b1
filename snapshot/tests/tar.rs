//! Every promise of appliers and differs, kept by the tar ones; and what other readers make of the
//! same bytes.

mod corpus;
mod readers;

mod applier {
    crated_snapshot::applier_testsuite!(crated_snapshot::TarApplier::default());
}

mod differ {
    crated_snapshot::differ_testsuite!(crated_snapshot::WalkingDiffer::default());
}
