//! `xtask licences`: what comes in must be free to go out again under our licence.
//!
//! Reads the part of cargo-deny's `deny.toml` that it checks, so that either tool can be used; this
//! one is built in seconds.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, Result, bail};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, NodeDep, Package};
use serde::Deserialize;
use spdx::{Expression, Licensee, ParseMode};

use crate::workspace::Workspace;

/// Workspaces of this checkout, each with its own lock file.
const MANIFESTS: &[&str] = &[WORKSPACE, crate::fuzz::MANIFEST];
const WORKSPACE: &str = "Cargo.toml";

/// Checks every package of every lock file.
///
/// # Errors
///
/// A package has no accepted licence, comes from elsewhere, or is banned; each has had its line by
/// then. `deny.toml` or cargo's metadata cannot be read.
pub fn run(workspace: &Workspace) -> Result<()> {
    let rules = Rules::read(&workspace.root.join("deny.toml"))?;
    let mut refused = 0_usize;
    for manifest in MANIFESTS {
        let metadata = metadata(&workspace.root.join(manifest))?;
        let mut foreign = 0_u32;
        // A package without a source is a folder; those of this checkout are ours.
        let is_ours =
            |package: &&Package| package.source.is_none() && package.manifest_path.starts_with(&workspace.root);
        for package in metadata.packages.iter().filter(|package| !is_ours(package)) {
            foreign += 1;
            for problem in rules.check(&Facts::of(package)) {
                eprintln!("{manifest}: {} {}: {problem}", package.name, package.version);
                refused += 1;
            }
        }
        eprintln!("  ok    {manifest}: {foreign} packages looked at");
        if *manifest == WORKSPACE {
            refused += kernel(&metadata)?;
        }
    }
    if refused > 0 {
        bail!("{refused} reasons to refuse a dependency; deny.toml says what is accepted");
    }
    Ok(())
}

/// The package of the kernel programs.
const KERNEL: &str = "agent-ebpf";
/// What goes together with the GPL 2, which the kernel programs declare.
const WITH_GPL2: &[&str] = &["GPL-2.0-only", "MIT", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Zlib"];

/// Checks that what is linked into the kernel programs can be had under the licence that they declare;
/// returns how many reasons there are that it cannot.
fn kernel(metadata: &Metadata) -> Result<usize> {
    let root = metadata.packages.iter().find(|package| package.name.as_str() == KERNEL);
    let root = root.with_context(|| format!("there is no package {KERNEL}"))?;
    let accepted: Vec<Licensee> = WITH_GPL2.iter().filter_map(|name| Licensee::parse(name).ok()).collect();
    let (mut seen, mut next, mut refused) = (BTreeSet::new(), vec![&root.id], 0);
    while let Some(id) = next.pop() {
        // What makes code at build time is in no object.
        let package = &metadata[id];
        if !seen.insert(id) || package.targets.iter().any(|target| target.is_proc_macro()) {
            continue;
        }
        if !can_be_had_under(package.license.as_deref(), &accepted) {
            let licence = package.license.as_deref().unwrap_or("no licence");
            eprintln!(
                "{KERNEL} links {} {}: `{licence}` does not go together with the GPL 2",
                package.name, package.version
            );
            refused += 1;
        }
        let node = metadata.resolve.iter().flat_map(|resolve| &resolve.nodes).find(|node| node.id == *id);
        let linked = |dep: &&NodeDep| dep.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal);
        next.extend(node.into_iter().flat_map(|node| node.deps.iter().filter(linked)).map(|dep| &dep.pkg));
    }
    eprintln!("  ok    {KERNEL}: {} packages looked at", seen.len());
    Ok(refused)
}

fn can_be_had_under(licence: Option<&str>, accepted: &[Licensee]) -> bool {
    let expression = licence.and_then(|licence| Expression::parse_mode(licence, ParseMode::LAX).ok());
    expression.is_some_and(|e| e.evaluate(|required| accepted.iter().any(|licence| licence.satisfies(required))))
}

fn metadata(manifest: &Path) -> Result<Metadata> {
    MetadataCommand::new()
        .manifest_path(manifest)
        .other_options(["--locked".to_owned()])
        .exec()
        .with_context(|| {
            let manifest = manifest.display();
            format!("read the packages of {manifest}; `cargo metadata --manifest-path {manifest}` brings its lock file up to date")
        })
}

/// `deny.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RulesFile {
    licenses: LicencesFile,
    bans: BansFile,
    sources: SourcesFile,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LicencesFile {
    allow: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BansFile {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct SourcesFile {
    unknown_registry: Refuse,
    unknown_git: Refuse,
}

/// The only answer to an unknown source: the file cannot say anything else.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Refuse {
    Deny,
}

/// `deny.toml`, known to be valid.
struct Rules {
    licences: Vec<Licensee>,
    bans: Vec<Ban>,
}

/// What is known about a package.
struct Facts<'a> {
    name: &'a str,
    licence: Option<&'a str>,
    source: Source<'a>,
}

/// Where a package comes from.
enum Source<'a> {
    CratesIo,
    /// Another registry, or a repository.
    Other(&'a str),
    /// A folder outside this checkout.
    Folder,
}

impl<'a> Facts<'a> {
    fn of(package: &'a Package) -> Self {
        Self {
            name: package.name.as_str(),
            licence: package.license.as_deref(),
            source: match &package.source {
                Some(source) if source.is_crates_io() => Source::CratesIo,
                Some(source) => Source::Other(&source.repr),
                None => Source::Folder,
            },
        }
    }
}

impl Rules {
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("read {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let RulesFile { licenses: LicencesFile { allow }, bans: BansFile { deny }, sources } = toml::from_str(text)?;
        let SourcesFile { unknown_registry: Refuse::Deny, unknown_git: Refuse::Deny } = sources;
        let licences = allow
            .iter()
            .map(|name| Licensee::parse(name).with_context(|| format!("`{name}` is no SPDX licence")))
            .collect::<Result<_>>()?;
        Ok(Self { licences, bans: deny })
    }

    /// Returns why a package is refused; nothing if it is not.
    fn check(&self, facts: &Facts<'_>) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(ban) = self.bans.iter().find(|ban| ban.name == facts.name) {
            problems.push(format!("banned: {}", ban.reason));
        }
        match facts.licence.map(|licence| Expression::parse_mode(licence, ParseMode::LAX)) {
            None => problems.push("it names no licence".to_owned()),
            Some(Err(error)) => problems.push(format!("its licence cannot be read: {}", error.reason)),
            Some(Ok(expression)) => {
                if !expression.evaluate(|required| self.licences.iter().any(|licence| licence.satisfies(required))) {
                    problems.push(format!("`{expression}` is not accepted"));
                }
            }
        }
        match facts.source {
            Source::CratesIo => {}
            Source::Other(source) => problems.push(format!("it comes from {source}")),
            Source::Folder => problems.push("it comes from a folder outside this checkout".to_owned()),
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules::parse(
            "licenses.allow = ['MIT', 'Apache-2.0']\n\
             bans.deny = [{ crate = 'bad', reason = 'it is bad' }]\n\
             sources = { unknown-registry = 'deny', unknown-git = 'deny' }",
        )
        .unwrap()
    }

    #[track_caller]
    fn check(name: &str, licence: Option<&str>, source: Source<'_>, problems: usize) {
        let found = rules().check(&Facts { name, licence, source });
        assert_eq!(found.len(), problems, "{found:?}");
    }

    #[test]
    fn one_accepted_side_of_an_or_is_enough_and_of_an_and_is_not() {
        check("good", Some("MIT"), Source::CratesIo, 0);
        check("good", Some("MIT OR GPL-3.0-only"), Source::CratesIo, 0);
        check("good", Some("MIT/Apache-2.0"), Source::CratesIo, 0);
        check("good", Some("MIT AND GPL-3.0-only"), Source::CratesIo, 1);
        check("good", Some("GPL-3.0-only"), Source::CratesIo, 1);
        check("good", Some("Apache-2.0 WITH LLVM-exception"), Source::CratesIo, 1);
    }

    #[test]
    fn a_package_without_a_readable_licence_is_refused() {
        check("good", None, Source::CratesIo, 1);
        check("good", Some("my own"), Source::CratesIo, 1);
    }

    #[test]
    fn a_package_from_anywhere_but_the_registry_is_refused() {
        check("good", Some("MIT"), Source::Other("git+https://forge.example/good"), 1);
        check("good", Some("MIT"), Source::Other("registry+https://other.example/index"), 1);
        check("good", Some("MIT"), Source::Folder, 1);
    }

    #[test]
    fn what_the_kernel_programs_link_goes_together_with_the_gpl() {
        let accepted: Vec<Licensee> = WITH_GPL2.iter().map(|name| Licensee::parse(name).unwrap()).collect();
        assert_eq!(accepted.len(), WITH_GPL2.len());
        for (licence, good) in [
            (Some("MIT OR Apache-2.0"), true),
            (Some("MIT/Apache-2.0"), true),
            (Some("Apache-2.0 OR GPL-2.0-only"), true),
            (Some("Apache-2.0"), false),
            (Some("MIT AND Apache-2.0"), false),
            (Some("nonsense"), false),
            (None, false),
        ] {
            assert_eq!(can_be_had_under(licence, &accepted), good, "{licence:?}");
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let manifest = fs::read_to_string(root.join(KERNEL).join("Cargo.toml")).unwrap();
        assert!(manifest.contains("license = \"Apache-2.0 OR GPL-2.0-only\""));
        // Of the strings that the kernel counts as compatible, the one that says what the manifest says.
        let source = fs::read_to_string(root.join(KERNEL).join("src/object.rs")).unwrap();
        assert!(source.contains("static LICENSE: [u8; 4] = *b\"GPL\\0\";"));
    }

    #[test]
    fn a_banned_package_is_refused_whatever_its_licence() {
        check("bad", Some("MIT"), Source::CratesIo, 1);
    }
}
