//! The CRDs as the YAML files of the CRD chart. Pure: text in memory.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use crate::{PreviewPolicy, PreviewPool, PreviewSandbox, SkuListing};

/// What a reader of a generated file must know.
const HEADER: &str = "# Generated from crds/src by `cargo xtask crdgen`. Do not edit.\n";

/// Every CRD with the name of its file in the chart.
pub fn all() -> Vec<(String, CustomResourceDefinition)> {
    [
        PreviewPolicy::crd(),
        PreviewPool::crd(),
        PreviewSandbox::crd(),
        SkuListing::crd(),
    ]
    .into_iter()
    .map(|mut crd| {
        // An uninstall of the chart must not delete every preview with its type. (The derive's own `annotation` would
        // go onto each object as well.)
        let annotations = crd.metadata.annotations.get_or_insert_default();
        annotations.insert("helm.sh/resource-policy".to_owned(), "keep".to_owned());
        (format!("{}.yaml", crd.spec.names.plural), crd)
    })
    .collect()
}

/// The files of the chart: name and text.
///
/// # Errors
/// If a CRD cannot be written as YAML, which would be a defect of its schema.
pub fn files() -> Result<Vec<(String, String)>, serde_yaml::Error> {
    all()
        .into_iter()
        .map(|(name, crd)| Ok((name, format!("{HEADER}{}", serde_yaml::to_string(&crd)?))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_crds_in_the_chart_are_current() {
        let folder =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/vitrine-crds/templates");
        for (name, text) in files().unwrap() {
            let committed = std::fs::read_to_string(folder.join(&name)).unwrap_or_default();
            assert!(
                committed == text,
                "charts/vitrine-crds/templates/{name} is not what crds/src says: run `cargo xtask crdgen` and commit the result"
            );
        }
    }

    #[test]
    fn no_schema_uses_a_number_format_that_the_api_server_warns_about() {
        let text = serde_json::to_string(&all()).unwrap();
        for format in ["uint8", "uint16", "uint32", "uint64", "uint"] {
            assert!(
                !text.contains(&format!("\"format\":\"{format}\"")),
                "{format}: use i32 or i64"
            );
        }
    }

    #[test]
    fn no_column_shows_the_link() {
        for (_, crd) in all() {
            for version in crd.spec.versions {
                for column in version.additional_printer_columns.unwrap_or_default() {
                    assert!(
                        !column.json_path.contains("url"),
                        "{}: a preview's link is a bearer secret",
                        column.name
                    );
                }
            }
        }
    }
}
