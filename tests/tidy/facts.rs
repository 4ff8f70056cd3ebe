//! What the source says of itself: what each file names, holds and defines, without its tests.

use std::collections::{BTreeSet, HashSet};
use std::sync::LazyLock;
use std::thread;

use proc_macro2::{Delimiter, Group, Spacing, TokenStream, TokenTree};
use quote::ToTokens;
use syn::{Attribute, FnArg, ImplItem, Item, Pat, Signature, TraitItem};

/// One file below `src`.
#[derive(Debug, Default)]
pub(super) struct File {
    /// Its path in the repository.
    pub(super) path: String,
    /// Where it is in the tree of modules.
    pub(super) module: Vec<String>,
    /// Lines with code on them.
    pub(super) code_lines: usize,
    /// What it names outside of itself: line, and path from the root of the crate.
    pub(super) names: Vec<(usize, Vec<String>)>,
    /// It forbids unsafe code by itself.
    pub(super) forbids_unsafe: bool,
    pub(super) types: Vec<TypeFacts>,
    /// For each function in an impl, its type.
    pub(super) methods: Vec<String>,
    pub(super) functions: Vec<Function>,
    /// Modules that are there for tests only.
    test_modules: Vec<Vec<String>>,
}

/// A type that is defined.
#[derive(Debug)]
pub(super) struct TypeFacts {
    pub(super) name: String,
    /// Of a struct.
    pub(super) fields: usize,
    /// It is written or read as JSON, or off a command line.
    pub(super) is_document: bool,
}

/// A function or method, by its name; one of a type is `Type::name`.
#[derive(Debug)]
pub(super) struct Function {
    pub(super) name: String,
    /// How many parameters it has besides `self`.
    pub(super) parameters: usize,
    /// One of them is taken apart where it is declared.
    pub(super) has_tuple_pattern: bool,
}

/// All files but those of tests and the roots of the crates, in order of their paths.
pub(super) static FILES: LazyLock<Vec<File>> = LazyLock::new(|| {
    let sources = super::sources("src");
    // Each thread parses what it reads: syntax trees do not leave their thread.
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let files: Vec<File> = thread::scope(|scope| {
        let part = |first: usize| {
            let mine = sources.iter().skip(first).step_by(threads);
            mine.map(|(path, text)| File::read(path, text)).collect::<Vec<_>>()
        };
        let parts: Vec<_> = (0..threads).map(|n| scope.spawn(move || part(n))).collect();
        parts.into_iter().flat_map(|part| part.join().expect("it parses")).collect()
    });
    let tests: HashSet<Vec<String>> =
        files.iter().flat_map(|file| file.test_modules.iter().cloned()).collect();
    let is_test =
        |file: &File| (1..=file.module.len()).any(|depth| tests.contains(&file.module[..depth]));
    let mut kept: Vec<File> =
        files.into_iter().filter(|file| !file.module.is_empty() && !is_test(file)).collect();
    kept.sort_by(|one, other| one.path.cmp(&other.path));
    kept
});

impl File {
    fn read(path: &str, text: &str) -> Self {
        let syntax = syn::parse_file(text).unwrap_or_else(|error| panic!("{path}: {error}"));
        let module = module_of(path);
        let mut file = Self { path: path.to_owned(), module: module.clone(), ..Self::default() };
        let mut lines = BTreeSet::new();
        syntax.attrs.iter().for_each(|attribute| mark(attribute.to_token_stream(), &mut lines));
        file.forbids_unsafe = syntax.attrs.iter().any(|attribute| {
            attribute.path().is_ident("forbid") && names(attribute, &["unsafe_code"])
        });
        for item in &syntax.items {
            file.take_item(item, &module, &mut lines);
        }
        file.code_lines = lines.len();
        file
    }

    fn take_item(&mut self, item: &Item, module: &[String], lines: &mut BTreeSet<usize>) {
        if let Item::Mod(inner) = item {
            let path: Vec<String> =
                module.iter().cloned().chain([inner.ident.to_string()]).collect();
            if is_for_tests(&inner.attrs) {
                self.test_modules.push(path);
                return;
            }
            if let Some((_, items)) = &inner.content {
                items.iter().for_each(|item| self.take_item(item, &path, lines));
                return;
            }
        }
        let Some(tokens) = without_tests(item) else { return };
        self.take_names(tokens.clone(), module);
        mark(tokens, lines);
        match item {
            Item::Struct(item) => {
                let is_document = item.attrs.iter().any(is_of_a_document);
                let (name, fields) = (item.ident.to_string(), item.fields.len());
                self.types.push(TypeFacts { name, fields, is_document });
            }
            Item::Enum(item) => self.take_type(item.ident.to_string()),
            Item::Union(item) => self.take_type(item.ident.to_string()),
            Item::Trait(item) => {
                let name = item.ident.to_string();
                for inner in &item.items {
                    if let TraitItem::Fn(function) = inner {
                        self.take_function(Some(&name), &function.sig);
                    }
                }
                self.take_type(name);
            }
            Item::Type(item) => self.take_type(item.ident.to_string()),
            Item::Fn(item) => self.take_function(None, &item.sig),
            Item::Impl(item) => {
                let syn::Type::Path(path) = &*item.self_ty else { return };
                let Some(name) = path.path.segments.last() else { return };
                let name = name.ident.to_string();
                for inner in &item.items {
                    if let ImplItem::Fn(function) = inner
                        && !is_for_tests(&function.attrs)
                    {
                        self.methods.push(name.clone());
                        self.take_function(Some(&name), &function.sig);
                    }
                }
            }
            _ => {}
        }
    }

    fn take_type(&mut self, name: String) {
        self.types.push(TypeFacts { name, fields: 0, is_document: false });
    }

    fn take_function(&mut self, of: Option<&str>, signature: &Signature) {
        let name = match of {
            Some(of) => format!("{of}::{}", signature.ident),
            None => signature.ident.to_string(),
        };
        let typed = signature.inputs.iter().filter_map(|input| match input {
            FnArg::Typed(typed) => Some(typed),
            FnArg::Receiver(_) => None,
        });
        let has_tuple_pattern = typed.clone().any(|typed| matches!(*typed.pat, Pat::Tuple(_)));
        // The state that a room works on is the receiver of its functions.
        let is_receiver = |typed: &&syn::PatType| match &*typed.pat {
            Pat::Ident(name) => name.ident == "core",
            _ => false,
        };
        let parameters = typed.filter(|typed| !is_receiver(typed)).count();
        self.functions.push(Function { name, parameters, has_tuple_pattern });
    }

    /// Notes the paths that begin with `crate` or `super`, those in macros included.
    fn take_names(&mut self, tokens: TokenStream, module: &[String]) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                // Who may see something is not named by it.
                TokenTree::Group(group) if begins_with(group, "in") => {}
                TokenTree::Group(group) => self.take_names(group.stream(), module),
                TokenTree::Ident(ident) if is_path_sep(&tokens[at + 1..]) => {
                    let line = ident.span().start().line;
                    let mut from = match ident.to_string().as_str() {
                        "crate" => Some(Vec::new()),
                        "super" => Some(module.to_vec()),
                        _ => None,
                    };
                    if ident == "super"
                        && let Some(from) = &mut from
                    {
                        from.pop();
                    }
                    if let Some(from) = from {
                        at += 3;
                        let mut found = Vec::new();
                        at += follow(&tokens[at..], from, &mut found);
                        self.names.extend(found.into_iter().map(|path| (line, path)));
                        continue;
                    }
                }
                _ => {}
            }
            at += 1;
        }
    }
}

/// Goes on with a path after `::`; adds what it names, and returns how many tokens it took.
fn follow(tokens: &[TokenTree], mut path: Vec<String>, found: &mut Vec<Vec<String>>) -> usize {
    let mut at = 0;
    loop {
        match tokens.get(at) {
            Some(TokenTree::Ident(ident)) if ident == "super" => drop(path.pop()),
            Some(TokenTree::Ident(ident)) => path.push(ident.to_string()),
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                for branch in inner.split(|token| is_punct(token, ',')) {
                    if !branch.is_empty() {
                        follow(branch, path.clone(), found);
                    }
                }
                return at + 1;
            }
            _ => break,
        }
        at += 1;
        if !is_path_sep(&tokens[at..]) {
            break;
        }
        at += 2;
    }
    found.push(path);
    at
}

fn is_path_sep(tokens: &[TokenTree]) -> bool {
    let joint = |token: &TokenTree| match token {
        TokenTree::Punct(punct) => punct.as_char() == ':' && punct.spacing() == Spacing::Joint,
        _ => false,
    };
    matches!(tokens, [first, second, ..] if joint(first) && is_punct(second, ':'))
}

fn is_punct(token: &TokenTree, c: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == c)
}

/// The tokens of an item, unless it is for tests; an impl is without those of its functions.
fn without_tests(item: &Item) -> Option<TokenStream> {
    let attributes: &[Attribute] = match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    };
    if is_for_tests(attributes) {
        return None;
    }
    let Item::Impl(item) = item else { return Some(item.to_token_stream()) };
    let mut item = item.clone();
    item.items.retain(|inner| match inner {
        ImplItem::Fn(function) => !is_for_tests(&function.attrs),
        _ => true,
    });
    Some(item.into_token_stream())
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    let is =
        |attribute: &Attribute| attribute.path().is_ident("cfg") && names(attribute, &["test"]);
    attributes.iter().any(is)
}

fn is_of_a_document(attribute: &Attribute) -> bool {
    let derived = ["Serialize", "Deserialize", "Parser", "Args"];
    attribute.path().is_ident("derive") && names(attribute, &derived)
}

/// Whether one of `words` is among those in the brackets of an attribute.
fn names(attribute: &Attribute, words: &[&str]) -> bool {
    attribute.meta.require_list().is_ok_and(|list| {
        list.tokens.clone().into_iter().any(|token| match token {
            TokenTree::Ident(ident) => words.iter().any(|word| ident == word),
            _ => false,
        })
    })
}

/// Adds the lines of tokens, but for those of doc comments.
fn mark(tokens: TokenStream, lines: &mut BTreeSet<usize>) {
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        if is_punct(&token, '#') {
            let bang = tokens.next_if(|next| is_punct(next, '!'));
            if tokens.next_if(is_doc).is_some() {
                continue;
            }
            lines.extend(bang.map(|bang| bang.span().start().line));
        }
        match &token {
            TokenTree::Group(group) => {
                lines.insert(group.span_open().start().line);
                mark(group.stream(), lines);
                lines.insert(group.span_close().end().line);
            }
            token => lines.extend(token.span().start().line..=token.span().end().line),
        }
    }
}

fn is_doc(token: &TokenTree) -> bool {
    matches!(token, TokenTree::Group(group) if begins_with(group, "doc"))
}

fn begins_with(group: &Group, word: &str) -> bool {
    matches!(group.stream().into_iter().next(), Some(TokenTree::Ident(ident)) if ident == word)
}

/// `src/a/b.rs` and `src/a/b/mod.rs` are `a::b`.
pub(super) fn module_of(path: &str) -> Vec<String> {
    let path = path.strip_prefix("src/").unwrap_or(path);
    let path = path.strip_suffix(".rs").unwrap_or(path);
    let path = path.strip_suffix("/mod").unwrap_or(path);
    path.split('/').filter(|part| !matches!(*part, "lib" | "main")).map(str::to_owned).collect()
}

#[test]
fn a_file_is_read_without_its_tests_and_comments() {
    let text = "//! Doc.\n#![forbid(unsafe_code)]\n\nuse super::{c, d::E};\n/// Doc.\n\
                struct A { // Why.\n    pub(in crate::z) b: u8,\n}\n\
                #[cfg(test)]\nmod tests { use crate::f; }\n\
                impl A {\n    fn g(&self, (h, i): (u8, u8)) { j!(crate::k::L::m()) }\n}\n";
    let file = File::read("src/a/b.rs", text);
    let named = |path: &[&str]| path.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();
    let names: Vec<_> = file.names.iter().map(|(_, path)| path.clone()).collect();
    assert_eq!(names, [named(&["a", "c"]), named(&["a", "d", "E"]), named(&["k", "L", "m"])]);
    assert_eq!(file.code_lines, 8);
    assert_eq!(file.methods, ["A"]);
    let [structure] = &file.types[..] else { panic!() };
    assert_eq!((structure.name.as_str(), structure.fields), ("A", 1));
    let [function] = &file.functions[..] else { panic!() };
    assert!(function.name == "A::g" && function.has_tuple_pattern && function.parameters == 1);
    assert_eq!(file.test_modules, [named(&["a", "b", "tests"])]);
}
