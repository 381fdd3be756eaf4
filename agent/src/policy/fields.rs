//! The strict reader of one map: every field is taken by name, and what nobody takes is an error.

use super::{
    finding::{Code, Finding, Mark},
    yaml::{At, Node, Value},
};

/// Text and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Text {
    /// As written.
    pub value: String,
    /// Where.
    pub at: Mark,
}

impl Text {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.value
    }
}

/// What reading a file carries along: the name of the file, and what was found wrong so far.
#[derive(Debug)]
pub struct Reader<'a> {
    /// For the places of findings.
    pub file: &'a str,
    /// In the order of the file.
    pub findings: Vec<Finding>,
}

impl Reader<'_> {
    /// Returns the place of a node.
    #[must_use]
    pub fn mark(&self, at: At) -> Mark {
        Mark::new(self.file, at)
    }

    /// Adds a finding.
    pub fn error(&mut self, code: Code, at: At, message: impl Into<String>) {
        let at = self.mark(at);
        self.findings.push(Finding::new(code, at, message));
    }

    /// Reads text that is not empty.
    pub fn text(&mut self, node: &Node, what: &str) -> Option<Text> {
        match &node.value {
            Value::Text(value) if value.is_empty() => self.error(Code::E06, node.at, format!("{what} is empty")),
            Value::Text(value) => return Some(Text { value: value.clone(), at: self.mark(node.at) }),
            other => self.wrong_kind(node.at, what, "text", other),
        }
        None
    }

    /// Reads the items of a list that is not empty.
    pub fn list<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n [Node]> {
        match &node.value {
            Value::List(items) if items.is_empty() => self.empty(node.at, what, "list"),
            Value::List(items) => return Some(items),
            other => self.wrong_kind(node.at, what, "a list", other),
        }
        None
    }

    /// Reads a list of texts.
    pub fn texts(&mut self, node: &Node, what: &str) -> Vec<Text> {
        let items = self.list(node, what).unwrap_or_default();
        let item_name = format!("an item of {what}");
        items.iter().filter_map(|item| self.text(item, &item_name)).collect()
    }

    /// Reads a map from text to text.
    pub fn text_map(&mut self, node: &Node, what: &str) -> Vec<(Text, Text)> {
        let Some(fields) = self.fields(node, what) else { return Vec::new() };
        let value_name = format!("a value of {what}");
        let pairs = fields.entries.into_iter();
        pairs.filter_map(|field| Some((field.key, self.text(field.value, &value_name)?))).collect()
    }

    /// Reads a map that is not empty. A key that is written twice is an error at both places.
    pub fn fields<'n>(&mut self, node: &'n Node, what: &str) -> Option<Fields<'n>> {
        let entries = match &node.value {
            Value::Map(entries) if entries.is_empty() => {
                self.empty(node.at, what, "map");
                return None;
            }
            Value::Map(entries) => entries,
            other => {
                self.wrong_kind(node.at, what, "a map", other);
                return None;
            }
        };
        let mut fields = Fields { what: what.to_owned(), at: node.at, entries: Vec::new() };
        let mut seen = std::collections::BTreeMap::new();
        for (key, value) in entries {
            let Some(key) = self.text(key, &format!("a key of {what}")) else { continue };
            if key.value == "<<" {
                let finding = Finding::new(Code::E01, key.at, format!("{what} has a merge key `<<`"));
                self.findings.push(finding.help("write the fields out: every rule must read the same where it stands"));
            } else if let Some(first) = seen.insert(key.value.clone(), key.at.clone()) {
                let message = format!("{what} has the key `{}` twice", key.value);
                self.findings.push(Finding::new(Code::E01, key.at, message).also(first, "first written here"));
            } else {
                fields.entries.push(Field { key, value });
            }
        }
        Some(fields)
    }

    fn empty(&mut self, at: At, what: &str, kind: &str) {
        let finding = Finding::new(Code::E06, self.mark(at), format!("{what} is an empty {kind}"));
        self.findings.push(finding.help("empty never means everything: leave the field out, or fill it"));
    }

    fn wrong_kind(&mut self, at: At, what: &str, expected: &str, found: &Value) {
        let found = match found {
            Value::Null => {
                self.error(Code::E06, at, format!("{what} has no value"));
                return;
            }
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        };
        self.error(Code::E01, at, format!("{what} must be {expected}, and this is {found}"));
    }
}

/// The fields of one map that nobody has taken yet.
#[derive(Debug)]
pub struct Fields<'n> {
    what: String,
    at: At,
    entries: Vec<Field<'n>>,
}

#[derive(Debug)]
struct Field<'n> {
    key: Text,
    value: &'n Node,
}

impl<'n> Fields<'n> {
    /// Where the map stands.
    #[must_use]
    pub fn at(&self) -> At {
        self.at
    }

    /// Takes a field.
    pub fn take(&mut self, name: &str) -> Option<&'n Node> {
        let i = self.entries.iter().position(|field| field.key.value == name)?;
        Some(self.entries.remove(i).value)
    }

    /// Takes a field of text.
    pub fn text(&mut self, reader: &mut Reader<'_>, name: &str) -> Option<Text> {
        let node = self.take(name)?;
        reader.text(node, &format!("`{name}`"))
    }

    /// Takes a field of text that must be there.
    pub fn required_text(&mut self, reader: &mut Reader<'_>, name: &str) -> Option<Text> {
        let node = self.required(reader, name)?;
        reader.text(node, &format!("`{name}`"))
    }

    /// Takes a list of texts.
    pub fn texts(&mut self, reader: &mut Reader<'_>, name: &str) -> Option<Vec<Text>> {
        let node = self.take(name)?;
        Some(reader.texts(node, &format!("`{name}`")))
    }

    /// Takes a field that must be there.
    pub fn required(&mut self, reader: &mut Reader<'_>, name: &str) -> Option<&'n Node> {
        let node = self.take(name);
        if node.is_none() {
            // A field that was misspelt is reported once, as unknown, by `finish`.
            let close = |field: &Field<'_>| strsim::damerau_levenshtein(&field.key.value, name) <= 2;
            if !self.entries.iter().any(close) {
                reader.error(Code::E01, self.at, format!("{} needs the field `{name}`", self.what));
            }
        }
        node
    }

    /// Refuses the fields that nobody took. `unsupported` are known words of the language that this
    /// version cannot honour; `known` are offered as corrections.
    pub fn finish(self, reader: &mut Reader<'_>, known: &[&str], unsupported: &[&str]) {
        for Field { key, .. } in self.entries {
            if key.value.starts_with("x-") {
                continue;
            }
            let finding = if unsupported.contains(&key.value.as_str()) {
                let message = format!("`{}` in {} is not supported by this version", key.value, self.what);
                Finding::new(Code::E01, key.at, message)
            } else {
                let message = format!("{} has no field `{}`", self.what, key.value);
                let names = known.iter().map(|&name| (name, None));
                let finding = Finding::new(Code::E01, key.at, message).did_you_mean(&key.value, names);
                let help = format!("fields: {}", known.join(", "));
                if finding.label.is_none() { finding.help(help) } else { finding }
            };
            reader.findings.push(finding);
        }
    }
}
