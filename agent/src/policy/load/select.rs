//! Selectors: which endpoints a workload is.

use super::Loader;
use crate::{
    identity::selectors::check_glob,
    policy::{
        fields::Text,
        file::SelectFile,
        finding::{Code, Finding},
        model::Selector,
    },
};

impl Loader {
    /// Returns the alternatives of a selector, each with the keys that stand beside `anyOf`.
    pub(super) fn selectors(&mut self, file: &SelectFile) -> Vec<Selector> {
        let base = self.selector(file);
        let mut alternatives = Vec::new();
        if file.any_of.is_empty() {
            alternatives.extend(base.map(|selector| (selector, file)));
        }
        for alternative in &file.any_of {
            alternatives.extend(self.beside(file, alternative).map(|selector| (selector, alternative)));
        }
        for (selector, file) in &alternatives {
            let Selector { systemd_unit, cgroup, container_id, host: _, uids: _ } = selector;
            if systemd_unit.is_none() && cgroup.is_none() && container_id.is_none() && !file.refused {
                let finding = Finding::new(Code::E06, file.at.clone(), "the selector names no endpoint");
                self.findings
                    .push(finding.help("`host` and `uid` only narrow; add `systemd`, `cgroup` or `container`"));
            }
        }
        alternatives.into_iter().map(|(selector, _)| selector).collect()
    }

    fn beside(&mut self, base: &SelectFile, alternative: &SelectFile) -> Option<Selector> {
        let twice = |key: &str, base: bool, alternative: bool| (base && alternative).then(|| key.to_owned());
        let keys = [
            twice("systemd", base.systemd_unit.is_some(), alternative.systemd_unit.is_some()),
            twice("cgroup", base.cgroup.is_some(), alternative.cgroup.is_some()),
            twice("container", base.container_id.is_some(), alternative.container_id.is_some()),
            twice("host", base.host.is_some(), alternative.host.is_some()),
            twice("uid", base.uids.is_some(), alternative.uids.is_some()),
        ];
        let mut ok = true;
        for key in keys.into_iter().flatten() {
            self.error(Code::E01, &alternative.at, format!("`{key}` stands both in `anyOf` and beside it"));
            ok = false;
        }
        let pick = |a: &Option<Text>, b: &Option<Text>| a.clone().or_else(|| b.clone());
        let merged = SelectFile {
            at: alternative.at.clone(),
            systemd_unit: pick(&alternative.systemd_unit, &base.systemd_unit),
            cgroup: pick(&alternative.cgroup, &base.cgroup),
            container_id: pick(&alternative.container_id, &base.container_id),
            host: pick(&alternative.host, &base.host),
            uids: alternative.uids.clone().or_else(|| base.uids.clone()),
            any_of: Vec::new(),
            refused: alternative.refused || base.refused,
        };
        if ok { self.selector(&merged) } else { None }
    }

    fn selector(&mut self, file: &SelectFile) -> Option<Selector> {
        let SelectFile { at: _, systemd_unit, cgroup, container_id, host, uids, any_of: _, refused: _ } = file;
        if let Some(cgroup) = cgroup.as_ref().filter(|text| !text.value.starts_with('/')) {
            let message = format!("cgroup `{}` must begin with `/`, the root of the hierarchy", cgroup.value);
            self.error(Code::E01, &cgroup.at, message);
        }
        let mut numbers = Vec::new();
        for uid in uids.iter().flatten() {
            match uid.value.parse::<u32>() {
                // The last number is nobody's: the kernel means "no change" by it, and the programs "not known".
                Ok(n) if n != u32::MAX => numbers.push(n),
                Ok(_) | Err(_) => self.error(Code::E01, &uid.at, format!("`{}` is no uid; write a number", uid.value)),
            }
        }
        // Without its numbers the selector would match every owner.
        if uids.is_some() && numbers.is_empty() {
            return None;
        }
        numbers.sort_unstable();
        numbers.dedup();
        Some(Selector {
            systemd_unit: self.glob(systemd_unit.as_ref()),
            cgroup: self.glob(cgroup.as_ref()),
            container_id: self.glob(container_id.as_ref()),
            host: self.glob(host.as_ref()),
            uids: numbers,
        })
    }

    fn glob(&mut self, text: Option<&Text>) -> Option<String> {
        let text = text?;
        if text.value.chars().any(char::is_control) {
            self.error(Code::E01, &text.at, "a glob may not hold control characters");
        } else if let Err(error) = check_glob(&text.value) {
            self.error(Code::E01, &text.at, format!("`{}` is no glob: {}", text.value, error.kind()));
        }
        Some(text.value.clone())
    }
}
