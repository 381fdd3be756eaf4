//! The actor of the lab. Tests start it; by hand it is of no use.

fn main() -> anyhow::Result<()> {
    tests::labd::main()
}
