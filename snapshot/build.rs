//! Compiles the binding to ISA-L where the feature `isal` asks for it.

fn main() {
    println!("cargo::rerun-if-changed=src/isal/inflate.c");
    #[cfg(feature = "isal")]
    {
        cc::Build::new().file("src/isal/inflate.c").warnings(true).compile("crated_isal");
        println!("cargo::rustc-link-lib=isal");
    }
}
