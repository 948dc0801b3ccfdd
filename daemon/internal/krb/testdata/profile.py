"""Answers what MIT krb5's own library makes of configuration files.

Reads questions as JSON from standard input and writes the answers. Texts are
bytes, written as Latin-1. It asks no network.
"""
import calendar, ctypes, json, os, sys, time
from ctypes import byref, c_char_p, c_int, c_int32, c_size_t, c_uint, c_void_p, POINTER

krb5 = ctypes.CDLL("libkrb5.so.3")
krb5.krb5_get_error_message.restype = c_void_p


class Data(ctypes.Structure):
    _fields_ = [("magic", c_int32), ("length", c_uint), ("data", c_void_p)]


class Server(ctypes.Structure):  # struct server_entry of 1.20
    _fields_ = [("hostname", c_char_p), ("port", c_int), ("transport", c_int), ("uri_path", c_char_p),
                ("family", c_int), ("primary", c_int), ("addrlen", c_size_t), ("addr", ctypes.c_ubyte * 128)]


class Servers(ctypes.Structure):
    _fields_ = [("servers", POINTER(Server)), ("count", c_size_t)]


HTTPS = 3  # enum k5_transport


class Refused(Exception):
    pass


def text(b):
    return b.decode("latin-1")


def raw(s):
    return s.encode("latin-1")


def data(s):
    d = Data(0, len(s))
    d.buffer = ctypes.create_string_buffer(raw(s))
    d.data = ctypes.addressof(d.buffer)
    return d


class Library:
    def __init__(self, list):
        os.environ["KRB5_CONFIG"] = list
        self.context = c_void_p()
        self.check(krb5.krb5_init_context(byref(self.context)))
        self.profile = c_void_p()
        self.check(krb5.krb5_get_profile(self.context, byref(self.profile)))

    def check(self, code):
        if code:
            raise Refused(text(ctypes.string_at(krb5.krb5_get_error_message(self.context, c_int(code)))))

    def close(self):
        krb5.profile_abandon(self.profile)
        krb5.krb5_free_context(self.context)

    def strings(self, function, path):
        names = (c_char_p * (len(path) + 1))(*map(raw, path), None)
        found = POINTER(c_char_p)()
        if function(self.profile, names, byref(found)):
            return []
        all = []
        while found[len(all)] is not None:
            all.append(text(found[len(all)]))
        return all

    def tree(self, path, relations, sections):
        for tag in self.strings(krb5.profile_get_relation_names, path):
            relations["\0".join(path + [tag])] = self.strings(krb5.profile_get_values, path + [tag])
        for name in dict.fromkeys(self.strings(krb5.profile_get_subsection_names, path)):
            sections.append("\0".join(path + [name]))
            self.tree(path + [name], relations, sections)

    def integer(self, name, otherwise):
        n = c_int()
        self.check(krb5.profile_get_integer(self.profile, b"libdefaults", raw(name), None, c_int(otherwise), byref(n)))
        return n.value

    def dns_lookup_kdc(self):
        for name in "dns_lookup_kdc", "dns_fallback":
            values = self.strings(krb5.profile_get_values, ["libdefaults", name])
            if values:
                return krb5._krb5_conf_boolean(raw(values[0])) != 0
        return True

    def enctypes(self, function, *arguments):
        found = POINTER(c_int32)()
        self.check(function(self.context, *arguments, byref(found)))
        all = []
        while found[len(all)]:
            all.append(found[len(all)])
        return all

    def realm_of(self, host):
        found = POINTER(c_char_p)()
        self.check(krb5.krb5_get_host_realm(self.context, raw(host), byref(found)))
        return text(found[0])

    def service(self, host):
        principal, name = c_void_p(), c_char_p()
        self.check(krb5.krb5_sname_to_principal(self.context, raw(host), b"HTTP", 3, byref(principal)))
        self.check(krb5.krb5_unparse_name(self.context, principal, byref(name)))
        return text(name.value)

    def kdcs(self, realm):
        found = Servers()
        code = krb5.k5_locate_kdc(self.context, byref(data(realm)), byref(found), 0, 0)
        if code:
            return None
        return [{"host": text(s.hostname), "port": s.port, "proxy": s.transport == HTTPS} for s in found.servers[:found.count]]

    def path(self, client, server):
        tree = POINTER(c_void_p)()
        self.check(krb5.krb5_walk_realm_tree(self.context, byref(data(client)), byref(data(server)), byref(tree), ctypes.c_char(b".")))
        all = []
        while tree[len(all)]:
            name = c_char_p()
            self.check(krb5.krb5_unparse_name(self.context, c_void_p(tree[len(all)]), byref(name)))
            all.append(text(name.value).split("@")[0].removeprefix("krbtgt").removeprefix("/"))
        return all

    def request(self, client):
        """The AS-REQ that kinit would send (RFC 4120, 5.4.1)."""
        principal, state = c_void_p(), c_void_p()
        self.check(krb5.krb5_parse_name(self.context, raw(client), byref(principal)))
        before = time.time()
        self.check(krb5.krb5_init_creds_init(self.context, principal, None, None, c_int32(0), None, byref(state)))
        answer, request, realm, flags = Data(), Data(), Data(), c_uint()
        self.check(krb5.krb5_init_creds_step(self.context, state, byref(answer), byref(request), byref(realm), byref(flags)))
        after = time.time()
        message = ctypes.string_at(request.data, request.length)
        krb5.krb5_init_creds_free(self.context, state)
        fields = members(value(value(message)))
        body = members(value(fields[4]))

        def seconds(t):  # from now, the earliest and the latest
            t = calendar.timegm(time.strptime(text(value(t)), "%Y%m%d%H%M%SZ"))
            return [int(t - after), int(t - before) + 1]

        enctypes, rest = [], value(body[8])
        while rest:
            _, n, rest = tlv(rest)
            enctypes.append(int.from_bytes(n, "big", signed=True))
        options = int.from_bytes(value(body[0])[1:], "big")
        return {"till": seconds(body[5]), "rtime": seconds(body[6]) if 6 in body else None, "enctypes": enctypes,
                "forwardable": bool(options >> 30 & 1), "proxiable": bool(options >> 28 & 1), "renewable": bool(options >> 23 & 1)}


def tlv(b):
    n, i = b[1], 2
    if n & 0x80:
        i += n & 0x7F
        n = int.from_bytes(b[2:i], "big")
    return b[0], b[i:i + n], b[i + n:]


def value(b):
    return tlv(b)[1]


def members(b):
    all = {}
    while b:
        tag, v, b = tlv(b)
        all[tag & 0x1F] = v
    return all


def duration(s):
    n = c_int32()
    return None if krb5.krb5_string_to_deltat(raw(s), byref(n)) else n.value


def answer(question):
    a = {"relations": {}, "sections": []}
    try:
        library = Library(question["list"])
    except Refused as e:
        return {"refused": str(e)}
    try:
        library.tree([], a["relations"], a["sections"])
        a["request"] = library.request(question["client"])
        a["tgs"] = library.enctypes(krb5.krb5_get_tgs_ktypes, None)
        library.enctypes(krb5.krb5_get_permitted_enctypes)
        a["udp"] = library.integer("udp_preference_limit", 1465)
    except Refused as e:
        library.close()
        return {"refused": str(e)}
    try:
        a["timesync"] = library.integer("kdc_timesync", 1)
    except Refused:
        a["timesync"] = 1
    a["dns"] = library.dns_lookup_kdc()
    a["hosts"] = [library.realm_of(host) for host in question["hosts"]]
    a["service"] = library.service("127.0.0.1")
    a["kdcs"], a["paths"] = {}, {}
    for path in a["relations"]:
        match path.split("\0"):
            case ["realms", realm, "kdc"]:
                a["kdcs"][realm] = library.kdcs(realm)
            case ["capaths", client, server] if client != server:
                a["paths"][path] = library.path(client, server)
    library.close()
    return a


asked = json.load(sys.stdin)
json.dump({"durations": [duration(d) for d in asked.get("durations", [])], "answers": [answer(q) for q in asked["questions"]]}, sys.stdout)
