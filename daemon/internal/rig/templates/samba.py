# Administers the domain of the smb.conf that is the first argument. Each run does
# one thing, {"do": its name, ...} on standard input, because arguments of
# processes are public. Samba's own modules do it in a third of a second, for which
# samba-tool would have to run several times.
import json
import logging
import os
import sys

import ldb
import samba
import samba.dsdb
from samba.auth import system_session
from samba.param import LoadParm
from samba.samdb import SamDB

configuration = LoadParm()
configuration.load(sys.argv[1])


def provision():
    import samba.provision

    # Skips the access control lists of the shares, for which it had to be root.
    samba.provision.provision(
        logging.getLogger(),
        system_session(),
        smbconf=sys.argv[1],
        lp=configuration,
        realm=configuration.get("realm"),
        domain=configuration.get("workgroup"),
        hostname=configuration.get("netbios name").lower(),
        hostip="127.0.0.1",
        serverrole=configuration.get("server role"),
        dns_backend="NONE",
        dom_for_fun_level=samba.dsdb.DS_DOMAIN_FUNCTION_2008_R2,
    )
    db = Database()
    # Any password will do, for ever.
    rules = ("pwdProperties", "minPwdLength", "pwdHistoryLength", "minPwdAge", "maxPwdAge")
    db.replace(ldb.Dn(db, db.domain_dn()), dict.fromkeys(rules, "0"))


class Database(SamDB):
    def __init__(self):
        super().__init__(configuration.private_path("sam.ldb"), session_info=system_session(), lp=configuration)

    def __enter__(self):
        self.transaction_start()
        return self

    def __exit__(self, failure, *_):
        if failure:
            self.transaction_cancel()
        else:
            self.transaction_commit()

    def dn(self, name):
        dn = ldb.Dn(self, "CN=x,CN=Users," + self.domain_dn())
        dn.set_component(0, "CN", name)
        return dn

    def replace(self, dn, values):
        message = ldb.Message(dn)
        for name, value in values.items():
            message[name] = ldb.MessageElement(value, ldb.FLAG_MOD_REPLACE, name)
        self.modify(message)

    def account(self, name):
        """The user of that name, or the account that has that SPN."""
        name = ldb.binary_encode(name.removesuffix("@" + configuration.get("realm")))
        found = self.search(
            expression=f"(&(objectClass=user)(|(sAMAccountName={name})(servicePrincipalName={name})))",
            attrs=["userAccountControl", "memberOf"],
        )
        if len(found) != 1:
            sys.exit(f"{len(found)} accounts are called {name}")
        return found[0]

    def change(self, name, on, off, values):
        account = self.account(name)
        control = int(str(account["userAccountControl"])) & ~off | on
        self.replace(account.dn, {"userAccountControl": str(control), **values})

    def rekey(self, dn, password):
        password = password or samba.generate_random_password(32, 32)
        self.replace(dn, {"unicodePwd": f'"{password}"'.encode("utf-16-le")})


def add(name, spn, password, **change):
    with Database() as db:
        entry = {
            "dn": db.dn(name),
            "objectClass": "user",
            "sAMAccountName": name,
            "userAccountControl": str(samba.dsdb.UF_NORMAL_ACCOUNT),
        }
        if spn:
            entry["servicePrincipalName"] = spn
            # AES.
            entry["msDS-SupportedEncryptionTypes"] = "24"
        db.add(entry)
        # Before the password, which makes keys of the enctypes, and after it: a new
        # password has not expired.
        db.change(name, **change)
        db.rekey(entry["dn"], password)
        db.change(name, **change)


def modify(name, **change):
    with Database() as db:
        db.change(name, **change)


def rekey(name, password):
    with Database() as db:
        db.rekey(db.account(name).dn, password)


def delete(name):
    with Database() as db:
        db.delete(db.account(name).dn)


def add_groups(name, number):
    with Database() as db:
        user = db.account(name)
        first = len(user.get("memberOf", ()))
        for i in range(first, first + number):
            db.add(
                {
                    "dn": db.dn(f"{name}-{i}"),
                    "objectClass": "group",
                    "sAMAccountName": f"{name}-{i}",
                    "member": str(user.dn),
                }
            )


def keytab(path, names):
    import samba.net

    samba.enable_net_export_keytab()
    os.umask(0o077)
    db = Database()
    for name in names:
        db.account(name)  # exporting the keys of nobody is no error
        samba.net.Net(None, configuration).export_keytab(keytab=path, principal=name)


request = json.load(sys.stdin)
operations = (provision, add, modify, rekey, delete, add_groups, keytab)
{operation.__name__: operation for operation in operations}[request.pop("do")](**request)
