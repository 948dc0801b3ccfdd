package e2e

import (
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	_ "google.golang.org/genproto/googleapis/rpc/errdetails" // whose messages the page has
	_ "google.golang.org/genproto/googleapis/rpc/status"

	_ "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// debianPython is Debian's own, which has the modules of Debian's packages.
const debianPython = "/usr/bin/python3"

// pythonDriver does jobs with docs/python.md's class, each in a thread of its own.
const pythonDriver = `
import concurrent.futures, json, sys
import requests
from sessionctl_auth import SessionAuth, SessionError

auth = SessionAuth("jira")

def ask(job):
    try:
        answer = requests.request(job["method"], job["url"], data=job["body"] or None, auth=auth, timeout=60,
            headers={"Cookie": job["cookie"] or None, "Authorization": job["authorization"] or None, "Content-Type": "application/json"},
            allow_redirects=job["method"] == "GET")
        shown = [repr(dict(r.request.headers)) for r in [answer, *answer.history]]
        return dict(status=answer.status_code, user=answer.headers.get("X-AUSERNAME", ""), text=answer.text, shown=" ".join(shown))
    except SessionError as error:
        return dict(code=error.code, remedy=error.remedy, message=str(error))

with concurrent.futures.ThreadPoolExecutor(8) as threads:
    for line in sys.stdin:
        job = json.loads(line)
        for got in threads.map(ask, [job] * job["times"]):
            print(json.dumps(got), flush=True)
`

func installPython(t *testing.T, r *reader, dir string) {
	t.Helper()
	for _, file := range []string{"sessionctl.proto", "sessionctl_auth.py", "myself.py"} {
		r.save(t, dir, file)
	}
	write(t, filepath.Join(dir, "driver.py"), pythonDriver)
	command := sectionBlocks(t, pythonPage, "What it takes", "text")[0]
	if got := finish(t, r.command(t, dir, strings.Fields(command)...), ""); got.status != 0 || got.stdout+got.stderr != "" {
		t.Fatalf("%s: %v", command, got)
	}
}

// TestPythonService: what docs/python.md has, with Debian's requests and gRPC.
func TestPythonService(t *testing.T) {
	rig.Require(t, "python3", "py_requests", "py_grpc", "py_google/protobuf", "protoc")
	testService(t, pythonPage, installPython, []string{debianPython, "myself.py"}, []string{debianPython, "driver.py"})
}

// TestPythonBodies: a stream is sent again from where it was; a generator, which
// cannot be, is left with the answer that came.
func TestPythonBodies(t *testing.T) {
	rig.Require(t, "python3", "py_requests", "py_grpc", "py_google/protobuf", "protoc")
	r := newReader(t)
	r.configure(t, "docs/jira.md", 0)
	r.start(t)
	dir := t.TempDir()
	installPython(t, r, dir)
	write(t, filepath.Join(dir, "bodies.py"), `
import io, sys
import requests
from sessionctl_auth import SessionAuth

issue = b'{"fields":{"project":{"key":"LAB"},"summary":"made once","issuetype":{"name":"Bug"}}}'
stream = io.BytesIO(b"skipped" + issue)
stream.seek(7)
body = {"stream": stream, "generator": iter([issue])}[sys.argv[2]]
answer = requests.post(sys.argv[1], data=body, auth=SessionAuth("jira"), headers={"Content-Type": "application/json"}, timeout=60)
print(answer.status_code)
`)
	for body, want := range map[string]string{"stream": "201\n", "generator": "401\n"} {
		r.ok(t, "raw", "jira")
		r.DropSessions()
		if got := finish(t, r.command(t, dir, debianPython, "bodies.py", r.front+"/jira/rest/api/2/issue", body), ""); got.status != 0 || got.stdout != want || got.stderr != "" {
			t.Errorf("%s: %v", body, got)
		}
	}
	if n := r.Counts().Created; n != 1 {
		t.Errorf("%d issues made", n)
	}
}

// TestPageProto: docs/python.md's part of the API is as the API is, and the errors'
// as Google's.
func TestPageProto(t *testing.T) {
	rig.Require(t, "protoc")
	r := &reader{home: &home{}}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "sessionctl.proto"), program(t, "sessionctl.proto").text)
	got := finish(t, r.command(t, dir, "protoc", "--descriptor_set_out=/dev/stdout", "sessionctl.proto"), "")
	if got.status != 0 {
		t.Fatalf("%v", got)
	}
	var set descriptorpb.FileDescriptorSet
	must(t, proto.Unmarshal([]byte(got.stdout), &set))
	file, err := protodesc.NewFile(set.GetFile()[0], nil)
	must(t, err)
	// What it has of other packages.
	theirs := map[protoreflect.Name]protoreflect.FullName{"Status": "google.rpc.Status", "Any": "google.protobuf.Any", "ErrorInfo": "google.rpc.ErrorInfo"}
	find := func(own protoreflect.Descriptor) protoreflect.Descriptor {
		name := own.FullName()
		if other, ok := theirs[own.Name()]; ok {
			name = other
		}
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
		must(t, err)
		return d
	}
	fields := 0
	for i := range file.Messages().Len() {
		own := file.Messages().Get(i)
		real := find(own).(protoreflect.MessageDescriptor)
		for j := range own.Fields().Len() {
			fields++
			f := own.Fields().Get(j)
			g := real.Fields().ByName(f.Name())
			if g == nil || g.Number() != f.Number() || g.Kind() != f.Kind() || g.Cardinality() != f.Cardinality() || g.IsMap() != f.IsMap() {
				t.Errorf("%s is %v", f.FullName(), g)
			} else if m := f.Message(); m != nil && !f.IsMap() && g.Message().FullName() != find(m).FullName() {
				t.Errorf("%s is a %s", f.FullName(), g.Message().FullName())
			}
		}
	}
	methods := file.Services().Get(0).Methods()
	for i := range methods.Len() {
		own := methods.Get(i)
		real := find(file.Services().Get(0)).(protoreflect.ServiceDescriptor).Methods().ByName(own.Name())
		if real == nil || real.Input().FullName() != own.Input().FullName() || real.Output().FullName() != own.Output().FullName() {
			t.Errorf("%s is %v", own.FullName(), real)
		}
	}
	if fields < 20 || methods.Len() != 3 {
		t.Errorf("only %d fields and %d methods looked at", fields, methods.Len())
	}
}
