//! The protocol files say what containerd's clients expect on the wire.

mod generator;

use std::collections::BTreeSet;
use std::path::Path;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
};

#[test]
fn every_upstream_fact_is_ours_and_nothing_else() {
    let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wire-facts.txt");
    let table = std::fs::read_to_string(table).unwrap();
    let upstream: BTreeSet<String> =
        table.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
    let ours = facts();

    let missing: Vec<_> = upstream.difference(&ours).collect();
    let invented: Vec<_> = ours.difference(&upstream).collect();
    assert!(missing.is_empty() && invented.is_empty(), "missing {missing:#?}, extra {invented:#?}");
    assert!(upstream.len() > 800, "the table is cut short");
}

fn facts() -> BTreeSet<String> {
    let mut facts = BTreeSet::new();
    for file in generator::descriptors().unwrap().file {
        // crated's own services are no fact of upstream's.
        if file.package().starts_with("google.protobuf") || file.package().starts_with("crated.") {
            continue;
        }
        add_file(&file, &mut facts);
    }
    facts
}

fn add_file(file: &FileDescriptorProto, facts: &mut BTreeSet<String>) {
    let package = file.package();
    for message in &file.message_type {
        add_message(package, message, facts);
    }
    for values in &file.enum_type {
        add_enum(package, values, facts);
    }
    for service in &file.service {
        for method in &service.method {
            facts.insert(format!(
                "method {package}.{}/{} {}{} -> {}{}",
                service.name(),
                method.name(),
                if method.client_streaming() { "stream " } else { "" },
                method.input_type().trim_start_matches('.'),
                if method.server_streaming() { "stream " } else { "" },
                method.output_type().trim_start_matches('.'),
            ));
        }
    }
}

fn add_message(scope: &str, message: &DescriptorProto, facts: &mut BTreeSet<String>) {
    let name = format!("{scope}.{}", message.name());
    facts.insert(format!("message {name}"));
    for field in &message.field {
        let label = match field.label() {
            Label::Repeated => "repeated",
            Label::Optional => "optional",
            Label::Required => "required",
        };
        let kind = kind(&name, message, field);
        facts.insert(format!("field {name}.{} {} {label} {kind}", field.name(), field.number()));
    }
    for nested in &message.nested_type {
        if !nested.options.as_ref().is_some_and(|options| options.map_entry()) {
            add_message(&name, nested, facts);
        }
    }
    for values in &message.enum_type {
        add_enum(&name, values, facts);
    }
}

fn add_enum(scope: &str, values: &EnumDescriptorProto, facts: &mut BTreeSet<String>) {
    for value in &values.value {
        let number = value.number();
        facts.insert(format!("value {scope}.{}.{} {number}", values.name(), value.name()));
    }
}

/// The type as a protocol file spells it, with map entries folded back.
fn kind(scope: &str, message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let scalar = match field.r#type() {
        Type::String => "string",
        Type::Bytes => "bytes",
        Type::Bool => "bool",
        Type::Int32 => "int32",
        Type::Int64 => "int64",
        Type::Uint32 => "uint32",
        Type::Uint64 => "uint64",
        Type::Message | Type::Enum => "",
        other => panic!("{scope}.{}: {other:?} has no spelling here", field.name()),
    };
    if !scalar.is_empty() {
        return scalar.to_owned();
    }
    let target = field.type_name().trim_start_matches('.');
    let entry = message.nested_type.iter().find(|nested| {
        target == format!("{scope}.{}", nested.name())
            && nested.options.as_ref().is_some_and(|options| options.map_entry())
    });
    match entry {
        Some(entry) => format!(
            "map<{},{}>",
            kind(scope, entry, &entry.field[0]),
            kind(scope, entry, &entry.field[1])
        ),
        None => target.to_owned(),
    }
}
