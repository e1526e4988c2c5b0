//! What is around a shop, as objects of Kubernetes: Postgres, Stripe's simulator, an identity provider. Pure.

use serde_json::{Value, json};

use super::{AROUND, Images, NAMESPACE, Ports, Secrets, secrets::LOGINS};

/// The Deployments, by name.
pub const PARTS: [&str; 3] = ["postgres", "stripe", "identity"];
/// Where Postgres listens.
pub const POSTGRES_PORT: u16 = 5432;

/// Makes a database in memory, once, and has Postgres answer TLS alone.
const POSTGRES: &str = r#"
set -e
if ! [ -d /data/pg ]; then
    initdb --auth-local=trust --auth-host=scram-sha-256 --username=postgres --encoding=UTF8 --no-locale -D /data/new
    postgres --single -D /data/new postgres < /etc/market/setup.sql
    echo 'hostssl all all 0.0.0.0/0 scram-sha-256' >> /data/new/pg_hba.conf
    mv /data/new /data/pg
fi
exec postgres -D /data/pg -c listen_addresses='*' -c unix_socket_directories=/data -c jit=off -c ssl=on \
    -c ssl_cert_file=/etc/market/tls.crt -c ssl_key_file=/etc/market/tls.key
"#;

/// A part: what runs, by which command, and where it listens.
struct Part<'a> {
    name: &'a str,
    image: String,
    command: Vec<String>,
    port: u16,
    /// Memory for it, and whether it writes below `/data`.
    memory: &'a str,
    writes: bool,
    /// A Secret whose keys are files below `/etc/market`.
    files: bool,
}

impl Part<'_> {
    fn objects(&self) -> [Value; 2] {
        let Self { name, port, .. } = self;
        let labels = json!({"app": name});
        let (mut volumes, mut mounts) = (vec![], vec![]);
        if self.writes {
            volumes.push(json!({"name": "data", "emptyDir": {"medium": "Memory", "sizeLimit": "256Mi"}}));
            mounts.push(json!({"name": "data", "mountPath": "/data"}));
        }
        if self.files {
            volumes.push(json!({"name": "files", "secret": {"secretName": name, "defaultMode": 0o440}}));
            mounts.push(json!({"name": "files", "mountPath": "/etc/market", "readOnly": true}));
        }
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": AROUND},
            "spec": {
                "selector": {"matchLabels": labels},
                // What is in memory is there once.
                "strategy": {"type": "Recreate"},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "automountServiceAccountToken": false,
                        "enableServiceLinks": false,
                        "terminationGracePeriodSeconds": 2,
                        "securityContext": {
                            "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532,
                            "seccompProfile": {"type": "RuntimeDefault"},
                        },
                        "volumes": volumes,
                        "containers": [{
                            "name": name,
                            "image": self.image,
                            "command": self.command,
                            "ports": [{"containerPort": port}],
                            "readinessProbe": {"tcpSocket": {"port": port}, "periodSeconds": 1},
                            "resources": {
                                "requests": {"cpu": "20m", "memory": "64Mi"},
                                "limits": {"cpu": "2", "memory": self.memory},
                            },
                            "securityContext": {
                                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
                            },
                            "volumeMounts": mounts,
                        }],
                    },
                },
            },
        });
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": AROUND},
            "spec": {"selector": labels, "ports": [{"port": port}]},
        });
        [deployment, service]
    }
}

/// Roles, logins and databases, as the README of the chart has them.
fn setup(secrets: &Secrets) -> String {
    // One statement a line: that is how a Postgres of a single user reads them.
    let mut lines: Vec<String> = ["vitrine_api", "vitrine_catalogue", "vitrine_signer"]
        .map(|role| format!("CREATE ROLE {role} NOLOGIN;"))
        .into();
    for ((login, _), password) in LOGINS.iter().zip(&secrets.passwords) {
        let role = match *login {
            "owner" | "finance" => String::new(),
            role => format!(" IN ROLE vitrine_{role}"),
        };
        lines.push(format!("CREATE ROLE {login} LOGIN PASSWORD '{password}'{role};"));
    }
    lines.extend(
        [
            "CREATE DATABASE shop OWNER owner;",
            "CREATE DATABASE finance OWNER finance;",
            "REVOKE CONNECT ON DATABASE shop FROM PUBLIC;",
            "REVOKE CONNECT ON DATABASE finance FROM PUBLIC;",
            "GRANT CONNECT ON DATABASE shop TO api, catalogue, signer;",
        ]
        .map(str::to_owned),
    );
    lines.join("\n") + "\n"
}

/// All of it.
pub fn objects(images: &Images, secrets: &Secrets, ports: &Ports) -> Vec<Value> {
    let [stripe_key, webhook_secret] = &secrets.stripe;
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let parts = [
        Part {
            name: "postgres",
            image: images.postgres.by_digest(),
            command: words(&["/bin/sh", "-c", POSTGRES]),
            port: POSTGRES_PORT,
            memory: "512Mi",
            writes: true,
            files: true,
        },
        Part {
            name: "stripe",
            image: images.stripe.by_digest(),
            command: words(&[
                "/vitrine-stripe",
                "--listen=0.0.0.0:8080",
                &format!("--pages=http://localhost:{}", ports.pages),
                &format!("--key={stripe_key}"),
                &format!("--webhook-url=http://vitrine-api.{NAMESPACE}.svc/webhooks/stripe"),
                &format!("--webhook-secret={webhook_secret}"),
            ]),
            port: 8080,
            memory: "128Mi",
            writes: false,
            files: false,
        },
        Part {
            name: "identity",
            image: images.identity.by_digest(),
            command: words(&[
                "/usr/bin/node",
                "/oidc/provider.mjs",
                &ports.identity.to_string(),
                "0.0.0.0",
                &ports.issuer(),
            ]),
            port: ports.identity,
            memory: "256Mi",
            writes: false,
            files: false,
        },
    ];
    let files = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "postgres", "namespace": AROUND},
        "stringData": {"setup.sql": setup(secrets), "tls.crt": secrets.tls.certificate, "tls.key": secrets.tls.key},
    });
    let objects = parts.iter().flat_map(Part::objects);
    [files].into_iter().chain(objects).collect()
}
