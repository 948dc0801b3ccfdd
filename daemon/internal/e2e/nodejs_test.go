package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// nodeModules is where .ci/install-rigs puts npm's packages.
const nodeModules = "/var/cache/sessionctl-rigs/node_modules"

// nodeDriver does jobs with docs/nodejs.md's module.
const nodeDriver = `
import { createInterface } from "node:readline";
import { sessionFetch } from "./sessionctl.mjs";

async function ask({ method, url, body, cookie, authorization }) {
  try {
    const answer = await sessionFetch("jira", url, {
      method, body: body || undefined,
      headers: { ...(cookie && { cookie, authorization }), "Content-Type": "application/json" },
    });
    return { status: answer.status, user: answer.headers.get("x-ausername") ?? "", text: await answer.text() };
  } catch (error) {
    if (error.name !== "SessionError") throw error;
    return { code: error.code, remedy: error.remedy, message: error.message };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const job = JSON.parse(line);
  for (const got of await Promise.all(Array.from({ length: job.times }, () => ask(job)))) console.log(JSON.stringify(got));
}
`

func installNode(t *testing.T, r *reader, dir string) {
	t.Helper()
	for _, file := range []string{"sessionctl.proto", "sessionctl.mjs", "myself.mjs"} {
		r.save(t, dir, file)
	}
	write(t, filepath.Join(dir, "driver.mjs"), nodeDriver)
	must(t, os.Symlink(nodeModules, filepath.Join(dir, "node_modules")))
}

// TestNodeService: what docs/nodejs.md has, with Node.js and npm's gRPC.
func TestNodeService(t *testing.T) {
	rig.Require(t, "node", nodeModules+"/@grpc/grpc-js/package.json", nodeModules+"/@grpc/proto-loader/package.json")
	testService(t, nodePage, installNode, []string{"node", "myself.mjs"}, []string{"node", "driver.mjs"})
}

// TestNodeHeaders: the headers alone, for another library.
func TestNodeHeaders(t *testing.T) {
	rig.Require(t, "node", nodeModules+"/@grpc/grpc-js/package.json", nodeModules+"/@grpc/proto-loader/package.json")
	r := newReader(t)
	r.configure(t, "docs/jira.md", 0)
	r.start(t)
	dir := t.TempDir()
	installNode(t, r, dir)
	write(t, filepath.Join(dir, "headers.mjs"), `
import { headers } from "./sessionctl.mjs";
const answer = await fetch(process.argv[2], { headers: await headers("jira", process.argv[2], "GET"), redirect: "manual" });
console.log((await answer.json()).name);
for (const url of ["http://127.0.0.1:1/", "ftp://localhost/"]) {
  try {
    console.log(await headers("jira", url));
  } catch (error) {
    console.log(error.code);
  }
}
`)
	if got := finish(t, r.command(t, dir, "node", "headers.mjs", r.front+"/jira/rest/api/2/myself"), ""); got.status != 0 || got.stdout != "svc-build\ninvalid_request\ninvalid_request\n" || got.stderr != "" {
		t.Errorf("%v", got)
	}
}
