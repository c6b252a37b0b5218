"""Creates a domain and changes its database while the domain controller runs. Only Samba's own Python can do this.

Each line of standard input is a request, a JSON object. The response is one line: {"result": ...} or {"error": ...}. The
program exits at the end of its input. Passwords are only in requests, never in command-line arguments.
"""
import json
import logging
import os
import struct
import sys
import time

import ldb
from samba import dsdb
from samba.auth import system_session
from samba.dcerpc import dnsp, security
from samba.domain.models import GroupManagedServiceAccount
from samba.ndr import ndr_pack, ndr_unpack
from samba.nt_time import nt_time_from_string
from samba.param import LoadParm
from samba.provision.sambadns import ARecord, SRVRecord
from samba.samdb import SamDB

DISABLED, WORKSTATION_TRUST, NEVER_EXPIRES = 0x2, 0x1000, 0x10000
EPOCH = 11644473600  # seconds from 1601, where FILETIME begins, to 1970
KEY_CYCLE = 36000  # lifetime of a group key in seconds ([MS-GKDI] 3.1.4.1): 10 hours


class Console:
    def __init__(self, conf):
        self.lp = LoadParm()
        self.lp.load(conf)
        self.db = None
        if os.path.exists(self.private("sam.ldb")):
            self.open()

    def private(self, name):
        return os.path.join(self.lp.get("private dir"), name)

    def open(self):
        self.db = SamDB(url=self.private("sam.ldb"), session_info=system_session(self.lp), lp=self.lp)

    # Accounts

    def entry(self, name, attributes=()):
        """Returns the account with a sAMAccountName. The $ of a gMSA is optional."""
        found = self.db.search(base=self.db.domain_dn(), scope=ldb.SCOPE_SUBTREE, attrs=list(attributes),
                               expression="(|(sAMAccountName=%s)(sAMAccountName=%s))" % (ldb.binary_encode(name), ldb.binary_encode(name + "$")))
        if len(found) != 1:
            raise Exception("the domain has %d accounts with the name %s" % (len(found), name))
        return found[0]

    def replace(self, dn, controls=(), **values):
        message = ldb.Message(dn)
        for attribute, value in values.items():
            attribute = attribute.replace("_", "-")
            if not isinstance(value, list):
                value = [value]
            message[attribute] = ldb.MessageElement([v if isinstance(v, bytes) else str(v) for v in value], ldb.FLAG_MOD_REPLACE, attribute)
        self.db.modify(message, controls=list(controls))

    def provision(self, realm, netbios, host, address, password):
        from samba.dsdb import DS_DOMAIN_FUNCTION_2016
        from samba.provision import provision, FILL_FULL
        log = logging.getLogger("provision")
        log.addHandler(logging.StreamHandler(sys.stderr))
        provision(log, system_session(), smbconf=self.lp.configfile, samdb_fill=FILL_FULL, realm=realm, domain=netbios, hostname=host,
                  hostip=address, adminpass=password, dns_backend="SAMBA_INTERNAL", serverrole="active directory domain controller",
                  dom_for_fun_level=DS_DOMAIN_FUNCTION_2016, adprep_level=DS_DOMAIN_FUNCTION_2016, base_schema="2019",
                  useeadb=False, skip_sysvolacl=True, lp=self.lp, backend_store="tdb")
        self.open()
        # The root key is effective since 2020, so that gMSAs can be older than the domain.
        self.db.new_gkdi_root_key(use_start_time=nt_time_from_string("2020-01-01T00:00:00+00:00"))
        # On other installations, samba_spnupdate registers these names.
        dns = realm.lower()
        fqdn = "%s.%s" % (host.lower(), dns)
        dc = ldb.Message(self.entry(host).dn)
        dc["spn"] = ldb.MessageElement(["ldap/" + fqdn, "ldap/%s/%s" % (fqdn, dns), "ldap/%s/%s" % (fqdn, netbios), "ldap/" + host.upper()],
                                       ldb.FLAG_MOD_ADD, "servicePrincipalName")
        self.db.modify(dc, controls=["permissive_modify:0"])

    def move(self, old, new):
        """Changes the address in each A record."""
        for zones in ("DomainDnsZones", "ForestDnsZones"):
            nodes = self.db.search(base="DC=%s,%s" % (zones, self.db.domain_dn()), scope=ldb.SCOPE_SUBTREE,
                                   expression="(objectClass=dnsNode)", attrs=["dnsRecord"])
            for node in nodes:
                records = [ndr_unpack(dnsp.DnssrvRpcRecord, bytes(r)) for r in node.get("dnsRecord", [])]
                own = [r for r in records if r.wType == dnsp.DNS_TYPE_A and r.data == old]
                for record in own:
                    record.data = new
                if own:
                    self.replace(node.dn, dnsRecord=[ndr_pack(r) for r in records])

    def add_user(self, name, password, groups=()):
        dn = ldb.Dn(self.db, "CN=x,CN=Users," + self.db.domain_dn())
        dn.set_component(0, "CN", name)
        self.db.transaction_start()
        try:
            self.db.add({"dn": dn, "objectClass": "user", "sAMAccountName": name,
                         "userPrincipalName": "%s@%s" % (name, self.db.domain_dns_name())})
            self.set_password(name, password)
            self.replace(dn, userAccountControl=512 | NEVER_EXPIRES)
            for group in groups:
                self.db.add_remove_group_members(group, [name])
        except BaseException:
            self.db.transaction_cancel()
            raise
        self.db.transaction_commit()

    def add_group(self, name, members=()):
        self.db.newgroup(name)
        if members:
            self.db.add_remove_group_members(name, list(members))

    def change_group(self, name, members, add):
        self.db.add_remove_group_members(name, list(members), add_members_operation=add)

    def remove(self, name):
        self.db.delete(self.entry(name).dn)

    def set_password(self, name, password, must_change=False):
        if must_change:
            self.flag(name, NEVER_EXPIRES, False)  # which takes precedence
        self.db.setpassword("(sAMAccountName=%s)" % ldb.binary_encode(name), password, force_change_at_next_login=must_change)

    def settle(self, old, new, passwords, gmsa):
        """Sets the address, the passwords and the age of the gMSA in an unpacked domain."""
        self.move(old, new)
        for name, password in passwords.items():
            self.set_password(name, password)
        self.backdate(gmsa, 60)

    def set(self, name, attribute, values):
        message = ldb.Message(self.entry(name).dn)
        message["x"] = ldb.MessageElement(list(values), ldb.FLAG_MOD_REPLACE, attribute)
        self.db.modify(message)

    def set_bytes(self, name, attribute, value):
        self.replace(self.entry(name).dn, **{attribute: bytes.fromhex(value)})

    def get(self, name, attribute):
        return [str(v) for v in self.entry(name, [attribute]).get(attribute, [])]

    def flag(self, name, flag, on):
        entry = self.entry(name, ["userAccountControl"])
        control = int(str(entry["userAccountControl"]))
        self.replace(entry.dn, userAccountControl=control | flag if on else control & ~flag)

    def enable(self, name, on):
        self.flag(name, DISABLED, not on)

    def expire(self, name, seconds_ago):
        """Expires the account itself, not its password."""
        self.replace(self.entry(name).dn, accountExpires=filetime(time.time() - seconds_ago))

    def expire_password(self, name):
        """Sets the age of the password to a year. The default maximum of a domain is 42 days."""
        self.flag(name, NEVER_EXPIRES, False)
        self.replace(self.entry(name).dn, controls=["local_oid:%s:0" % dsdb.DSDB_CONTROL_BYPASS_PASSWORD_HASH_OID],
                     pwdLastSet=filetime(time.time() - 365 * 86400))

    def lock(self, name, address):
        """Locks an account with wrong passwords, while the domain's limit is three."""
        domain = ldb.Dn(self.db, self.db.domain_dn())
        self.replace(domain, lockoutThreshold=3, lockoutDuration=-30 * 60 * 10**7, lockOutObservationWindow=-30 * 60 * 10**7)
        try:
            answer = "none"
            for _ in range(10):
                try:
                    self.bind(name, "not the password", address)
                except ldb.LdbError as e:
                    answer = str(e)
                if "data 775" in answer:
                    return
            raise Exception("%s is not locked after 10 wrong passwords: %s" % (name, answer))
        finally:
            self.replace(domain, lockoutThreshold=0)

    def unlock(self, name):
        self.replace(self.entry(name).dn, lockoutTime=0)

    # Group managed service accounts

    def add_gmsa(self, name, readers, interval, encryption_types):
        """interval is in days. Unlike New-ADServiceAccount, Samba creates a disabled gMSA without encryption types."""
        dns = self.db.domain_dns_name()
        self.db.transaction_start()
        try:
            GroupManagedServiceAccount(name=name, dns_host_name="%s.%s" % (name, dns), managed_password_interval=interval).save(self.db)
            for reader in readers:
                self.grant(name, reader, True)
            self.replace(self.entry(name).dn, userAccountControl=WORKSTATION_TRUST, msDS_SupportedEncryptionTypes=encryption_types,
                         servicePrincipalName=["HTTP/%s.%s" % (name, dns)])
            self.backdate(name, 60)
        except BaseException:
            self.db.transaction_cancel()
            raise
        self.db.transaction_commit()

    def grant(self, gmsa, principal, allow):
        account = GroupManagedServiceAccount.find(self.db, gmsa)
        sid = str(ndr_unpack(security.dom_sid, bytes(self.entry(principal, ["objectSid"])["objectSid"][0])))
        if allow:
            account.add_trustee(sid)
        else:
            account.remove_trustee(sid)
        account.save(self.db)

    # A gMSA's password derives from its ID, which is the number of the 10-hour cycle in which the password started. When the
    # account is used and the interval has passed since that cycle, the domain controller creates a new password. It starts where
    # the old one ends ([MS-ADTS] 3.1.1.4.5.39).

    def backdate(self, gmsa, cycles):
        """Sets the age of the account to 70 days, and the age of its password to the given number of cycles, after a previous
        password of 30 days. The domain controller computes both passwords when the account is used."""
        entry = self.entry(gmsa, ["msDS-ManagedPasswordId", "msDS-ManagedPasswordInterval"])
        old = cycles + int(str(entry["msDS-ManagedPasswordInterval"])) * 86400 // KEY_CYCLE
        key = bytearray(bytes(entry["msDS-ManagedPasswordId"][0]))
        # [MS-GKDI] 2.2.4: after version, magic and flags come the three numbers of the key, in units of 1024, 32 and 1 cycles.
        cycle = int(self.now() // KEY_CYCLE) - old
        struct.pack_into("<III", key, 12, cycle // 1024, cycle // 32 % 32, cycle % 32)
        self.replace(entry.dn, controls=["relax:0"], msDS_ManagedPasswordId=bytes(key), whenCreated=ldb.timestring(int(time.time()) - 70 * 86400))

    def age(self, gmsa):
        """Returns the number of cycles since the start of the password."""
        key = bytes(self.entry(gmsa, ["msDS-ManagedPasswordId"])["msDS-ManagedPasswordId"][0])
        l0, l1, l2 = struct.unpack_from("<III", key, 12)
        return int(self.now() // KEY_CYCLE) - (l0 * 1024 + l1 * 32 + l2)

    def now(self):
        return time.time() + EPOCH

    def roll(self, gmsa, address):
        """Temporarily sets an interval that has passed once since the start of the password, but not twice."""
        self.touch(gmsa, address)
        age = self.age(gmsa)
        days = next((d for d in range(1, 30) if age // 2 < d * 86400 // KEY_CYCLE <= age), None)
        if days is None:
            raise Exception("%s supports no further change: its password is %d hours old, and the shortest interval is a day; add another gMSA"
                            % (gmsa, age * KEY_CYCLE // 3600))
        dn = self.entry(gmsa).dn
        self.replace(dn, controls=["relax:0"], msDS_ManagedPasswordInterval=days)
        try:
            self.touch(gmsa, address)
        finally:
            self.replace(dn, controls=["relax:0"], msDS_ManagedPasswordInterval=30)
        if self.age(gmsa) >= age:
            raise Exception("the domain controller created no new password for " + gmsa)

    def touch(self, name, address):
        """Makes the domain controller read an account, with a wrong password."""
        try:
            self.bind(name + "$", "not the password", address)
        except ldb.LdbError as e:
            if "data 52e" not in str(e):
                raise

    def bind(self, name, password, address):
        from samba.credentials import DONT_USE_KERBEROS, Credentials
        lp = LoadParm()
        lp.load(self.lp.configfile)
        lp.set("tls verify peer", "no_check")
        credentials = Credentials()
        credentials.guess(lp)
        credentials.set_kerberos_state(DONT_USE_KERBEROS)
        credentials.set_bind_dn("%s@%s" % (name, self.db.domain_dns_name()))
        credentials.set_password(password)
        return SamDB(url="ldaps://" + address, lp=lp, credentials=credentials)

    def remove_kds_keys(self):
        base = "CN=Master Root Keys,CN=Group Key Distribution Service,CN=Services," + str(self.db.get_config_basedn())
        keys = self.db.search(base=base, scope=ldb.SCOPE_ONELEVEL, attrs=["cn"])
        for key in keys:
            self.db.delete(key.dn)
        return len(keys)

    def add_kds_key(self):
        self.db.new_gkdi_root_key(use_start_time=nt_time_from_string("2020-01-01T00:00:00+00:00"))

    # DNS

    def add_dc_record(self, host, address, priority):
        """Adds a domain controller only to DNS."""
        dns = self.db.domain_dns_name()
        fqdn = "%s.%s" % (host, dns)
        for name, zone in (("_ldap._tcp.dc", "_msdcs." + dns), ("_kerberos._tcp.dc", "_msdcs." + dns), ("_ldap._tcp", dns), ("_kerberos._tcp", dns)):
            port = 88 if "kerberos" in name else 389
            self.add_record(name, zone, SRVRecord(fqdn, port, priority=priority))
        self.add_record(host, dns, ARecord(address))

    def add_record(self, name, zone, record):
        partition = "ForestDnsZones" if zone.startswith("_msdcs.") else "DomainDnsZones"
        dn = ldb.Dn(self.db, "DC=%s,DC=%s,CN=MicrosoftDNS,DC=%s,%s" % (name, zone, partition, self.db.domain_dn()))
        try:
            node = self.db.search(base=dn, scope=ldb.SCOPE_BASE, attrs=["dnsRecord"])[0]
            self.replace(dn, dnsRecord=[bytes(r) for r in node["dnsRecord"]] + [ndr_pack(record)])
        except ldb.LdbError as e:
            if e.args[0] != ldb.ERR_NO_SUCH_OBJECT:
                raise
            self.db.add({"dn": dn, "objectClass": "dnsNode", "dnsRecord": ndr_pack(record)})


def filetime(unix):
    return int((unix + EPOCH) * 10**7)


def main():
    console = Console(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Samba's output must not be a response
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": getattr(console, request["do"])(**request["with"])}
        except Exception as e:
            answer = {"error": "%s: %s" % (type(e).__name__, e)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


main()
