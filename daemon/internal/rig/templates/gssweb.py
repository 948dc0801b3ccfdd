# gssweb.py DIR PORT SPN HASH REQUIRE: the server that gssweb.go describes. DIR
# holds tls.pem and http.keytab; HASH is what tls-server-end-point hashes the
# certificate with; REQUIRE is 1 if tokens without channel bindings are refused.
import base64
import hashlib
import http.server
import json
import os
import secrets
import socketserver
import ssl
import sys

import gssapi

DIR, PORT, SPN, HASH, REQUIRE = sys.argv[1:]
CHANNEL_BOUND = 0x800  # GSS_C_CHANNEL_BOUND_FLAG of MIT krb5
COOKIE = "cbt_session"

# The error of a token itself, not one of a later use of the context.
gssapi.SecurityContext.__DEFER_STEP_ERRORS__ = False

with open(os.path.join(DIR, "tls.pem")) as f:
    pem = f.read()
end = "-----END CERTIFICATE-----\n"
der = ssl.PEM_cert_to_DER_cert(pem[: pem.index(end) + len(end)])
bindings = gssapi.raw.ChannelBindings(
    application_data=b"tls-server-end-point:" + hashlib.new(HASH, der).digest()
)
credentials = gssapi.Credentials(
    usage="accept",
    name=gssapi.Name(SPN, gssapi.NameType.kerberos_principal),
    store={"keytab": os.path.join(DIR, "http.keytab")},
)
sessions = {}  # cookie's value -> who logged in, and how


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.partition("?")[0]
        if not path.startswith("/cbt/"):
            self.answer(404, "text/plain", "not found\n")
            return
        cookies = dict(c.strip().partition("=")[::2] for c in self.headers.get("Cookie", "").split(";"))
        session = sessions.get(cookies.get(COOKIE))
        headers = []
        if session is None:
            session, token = self.login()
            challenge = "Negotiate " + base64.b64encode(token).decode() if token else "Negotiate"
            if session is None or token:
                headers.append(("WWW-Authenticate", challenge))
            if session is None:
                self.answer(401, "text/plain", "unauthorized\n", headers)
                return
            value = secrets.token_urlsafe()
            sessions[value] = session
            headers.append(("Set-Cookie", f"{COOKIE}={value}; Path=/; Secure; HttpOnly"))
        if path == "/cbt/whoami":
            self.answer(200, "application/json", json.dumps(session) + "\n", headers)
        else:
            self.answer(200, "text/html", "<p>cbt</p>\n", headers)

    def login(self):
        """Returns the session, None if there is to be none, and the answer's token."""
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "negotiate":
            return None, None
        context = gssapi.SecurityContext(
            creds=credentials, usage="accept", channel_bindings=bindings
        )
        try:
            reply = context.step(base64.b64decode(token))
        except gssapi.exceptions.GSSError as e:
            self.log_error("%s", e)
            return None, e.token
        except ValueError as e:  # not base64
            self.log_error("%s", e)
            return None, None
        if not context.complete:
            self.log_error("more than one token is needed")
            return None, None
        flags = int(context.actual_flags)
        bound = bool(flags & CHANNEL_BOUND)
        if REQUIRE == "1" and not bound:
            self.log_error("a token without channel bindings")
            return None, None
        return {"user": str(context.initiator_name), "bound": bound, "flags": flags}, reply

    def answer(self, status, kind, body, headers=()):
        body = body.encode()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.minimum_version = ssl.TLSVersion.TLSv1_2
tls.set_ciphers("DEFAULT:@SECLEVEL=0")  # or OpenSSL does not load a certificate signed with SHA-1
tls.load_cert_chain(os.path.join(DIR, "tls.pem"))
server = Server(("127.0.0.1", int(PORT)), Handler)
# The handshake is left to the thread of the connection, which waits for nobody else.
server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
with open(os.path.join(DIR, "gssweb.pid"), "w") as f:
    f.write(str(os.getpid()))
server.serve_forever()
