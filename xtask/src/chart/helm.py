"""Lints, installs, upgrades and uninstalls a chart with Helm's own library, against an API server of this file.

The server keeps objects in memory and says yes to everything; jobs are done at once. So what Helm sends is what it would send
to a cluster, in its order, hooks included. It is no test of Kubernetes: nothing is defaulted, validated or run.

Standard input: {"chart": DIR, "namespace": NAME, "cases": [{"name", "values", "kubernetes", "kinds": ["group/version/Kind", ...]}]}.
Standard output, one line of JSON for each case: {"name", "lint", "error", "notes", "installed", "uninstalled", "left"}, where
the last three are lists of objects: made by install, made by uninstall (its hooks), and there at the end.
Called by `cargo xtask chart`.
"""

import asyncio
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import helm_sdkpy

# group/version: kinds; those that are in no namespace end in !.
KINDS = {
    "v1": "Secret ConfigMap Service ServiceAccount Pod Event ResourceQuota Namespace! Node!",
    "apps/v1": "DaemonSet Deployment",
    "batch/v1": "Job",
    "policy/v1": "PodDisruptionBudget",
    "rbac.authorization.k8s.io/v1": "Role RoleBinding ClusterRole! ClusterRoleBinding!",
}
CLUSTER_WIDE = {"GatewayClass", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}


def plural(kind):
    kind = kind.lower()
    if kind.endswith("y"):
        return kind[:-1] + "ies"
    return kind + ("es" if kind.endswith("s") else "s")


class Cluster:
    """Objects by their path, and what was done, in order."""

    def __init__(self, version, kinds):
        self.version = version
        self.kinds = {}
        for group_version, names in KINDS.items():
            for name in names.split():
                self.add(group_version, name.rstrip("!"), not name.endswith("!"))
        for name in kinds:
            group_version, kind = name.rsplit("/", 1)
            self.add(group_version, kind, kind not in CLUSTER_WIDE)
        self.objects = {}
        self.made = []
        self.revision = 100
        self.changed = threading.Condition()

    def add(self, group_version, kind, namespaced):
        self.kinds.setdefault(group_version, {})[plural(kind)] = (kind, namespaced)

    def discovery(self, path):
        if path == "/version":
            return {"major": "1", "minor": self.version.split(".")[1], "gitVersion": self.version}
        if path.startswith("/openapi/v3"):
            return self.openapi(path.removeprefix("/openapi/v3").removeprefix("/"))
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            groups = [
                {
                    "name": group_version.split("/")[0],
                    "versions": [{"groupVersion": group_version, "version": group_version.split("/")[1]}],
                    "preferredVersion": {"groupVersion": group_version, "version": group_version.split("/")[1]},
                }
                for group_version in self.kinds
                if "/" in group_version
            ]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
        group_version = path.removeprefix("/apis/").removeprefix("/api/")
        if group_version not in self.kinds:
            return None
        verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
        resources = [
            {"name": name, "singularName": kind.lower(), "namespaced": namespaced, "kind": kind, "verbs": verbs}
            for name, (kind, namespaced) in self.kinds[group_version].items()
        ]
        return {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": group_version,
            "resources": resources,
        }

    def openapi(self, group):
        """Says of each kind that the server validates it, so that Helm does not want to."""
        at = {("apis/" if "/" in name else "api/") + name: name for name in self.kinds}
        if not group:
            return {"paths": {path: {"serverRelativeURL": f"/openapi/v3/{path}?hash=1"} for path in at}}
        name = at.get(group)
        if name is None:
            return None
        head, _, version = name.rpartition("/")
        validates = [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}]
        paths = {
            f"/{group}/{resource}/{{name}}": {
                "patch": {
                    "parameters": validates,
                    "responses": {},
                    "x-kubernetes-group-version-kind": {"group": head, "version": version, "kind": kind},
                }
            }
            for resource, (kind, _) in self.kinds[name].items()
        }
        return {"openapi": "3.0.0", "info": {"title": "it", "version": "1"}, "paths": paths}

    def put(self, path, body, made):
        with self.changed:
            self.revision += 1
            kept = self.objects.get(path, {})
            body = {**kept, **body, "metadata": {**kept.get("metadata", {}), **body.get("metadata", {})}}
            body["metadata"].update(resourceVersion=str(self.revision), uid=f"uid-{self.revision}")
            if body.get("kind") == "Job":
                done = [{"type": kind, "status": "True"} for kind in ("SuccessCriteriaMet", "Complete")]
                body["status"] = {"succeeded": 1, "conditions": done}
            self.objects[path] = body
            if made:
                self.made.append(json.loads(json.dumps(body)))
            self.changed.notify_all()
            return body

    def remove(self, path):
        with self.changed:
            gone = self.objects.pop(path, None)
            self.revision += 1
            self.changed.notify_all()
            return gone

    def list(self, path, query):
        with self.changed:
            found = [body for at, body in self.objects.items() if at.rsplit("/", 1)[0] == path]
        for name in query.get("fieldSelector", []):
            key, value = name.split("=", 1)
            found = [body for body in found if key != "metadata.name" or body["metadata"]["name"] == value]
        for pair in filter(None, ",".join(query.get("labelSelector", [])).split(",")):
            key, value = pair.split("=", 1)
            found = [body for body in found if body["metadata"].get("labels", {}).get(key) == value]
        return found


def handler(cluster):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def answer(self, body, code=200):
            data = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def missing(self):
            gone = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
            self.answer({**gone, "message": f"{self.path} not found", "details": {}}, 404)

        def body(self):
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return json.loads(data) if data else {}

        def do_GET(self):
            url = urlsplit(self.path)
            query = parse_qs(url.query)
            found = cluster.discovery(url.path)
            if found is None and url.path in cluster.objects:
                found = cluster.objects[url.path]
            if found is not None:
                return self.answer(found)
            if not any(url.path.endswith("/" + name) for kinds in cluster.kinds.values() for name in kinds):
                return self.missing()
            items = cluster.list(url.path, query)
            if query.get("watch", ["false"])[0] not in ("1", "true"):
                revision = {"resourceVersion": str(cluster.revision)}
                return self.answer({"kind": "List", "apiVersion": "v1", "metadata": revision, "items": items})
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.close_connection = True
            if "resourceVersion" not in query or "sendInitialEvents" in query:
                for item in items:
                    self.event("ADDED", item)
            if "sendInitialEvents" in query:
                ends = {"annotations": {"k8s.io/initial-events-end": "true"}, "resourceVersion": str(cluster.revision)}
                kind = items[0]["kind"] if items else "Job"
                version = items[0]["apiVersion"] if items else "batch/v1"
                self.event("BOOKMARK", {"kind": kind, "apiVersion": version, "metadata": ends})
            with cluster.changed:
                cluster.changed.wait(5)

        def event(self, kind, item):
            self.wfile.write(json.dumps({"type": kind, "object": item}).encode() + b"\n")
            self.wfile.flush()

        def do_POST(self):
            body = self.body()
            path = urlsplit(self.path).path + "/" + body["metadata"]["name"]
            self.answer(cluster.put(path, body, True), 201)

        def do_PUT(self):
            self.answer(cluster.put(urlsplit(self.path).path, self.body(), False))

        def do_PATCH(self):
            path = urlsplit(self.path).path
            self.answer(cluster.put(path, self.body(), path not in cluster.objects))

        def do_DELETE(self):
            self.body()
            path = urlsplit(self.path).path
            if cluster.remove(path) is None:
                return self.missing()
            return self.answer({"kind": "Status", "apiVersion": "v1", "status": "Success"})

    return Handler


async def run(chart, namespace, case):
    cluster = Cluster(case["kubernetes"], case["kinds"])
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(cluster))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    kubeconfig = (
        "apiVersion: v1\nkind: Config\ncurrent-context: it\ncontexts:\n- name: it\n  context: {cluster: it, user: it}\n"
        f"clusters:\n- name: it\n  cluster: {{server: '{address}'}}\nusers:\n- name: it\n  user: {{}}\n"
    )
    out = {"name": case["name"], "error": None}
    config = helm_sdkpy.Configuration(namespace, kubeconfig)
    out["lint"] = await helm_sdkpy.Lint(config).run(chart)
    try:
        installed = await helm_sdkpy.Install(config).run(
            "weft", chart, values=case["values"], wait=False, create_namespace=True, timeout=30, server_side_apply=True
        )
        out["notes"] = installed["info"]["notes"]
        out["installed"] = cluster.made
        cluster.made = []
        await helm_sdkpy.Uninstall(config).run("weft", wait=False, timeout=30)
        out["uninstalled"] = cluster.made
        out["left"] = list(cluster.objects.values())
    except helm_sdkpy.HelmError as error:
        out["error"] = str(error)
    server.shutdown()
    return out


async def main():
    asked = json.load(sys.stdin)
    for case in asked["cases"]:
        print(json.dumps(await run(asked["chart"], asked["namespace"], case)), flush=True)


asyncio.run(main())
