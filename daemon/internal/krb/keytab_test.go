package krb

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/api"
)

// keytabEntry is an entry of a keytab file with an empty key.
func keytabEntry(name, realm string, etype uint16) []byte {
	text := func(b []byte, s string) []byte {
		return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
	}
	b := text(text([]byte{0, 1}, realm), name)
	b = append(b, 0, 0, 0, 1, 0, 0, 0, 0, 1) // name type, time, version of the key
	b = binary.BigEndian.AppendUint16(b, etype)
	b = append(b, 0, 0)
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
}

// What a keytab holds comes into a message quoted, and not at full length.
func TestKeytabNamesInMessages(t *testing.T) {
	svc := Principal{Components: []string{"svc"}, Realm: "R"}
	long, many, strange := []byte{5, 2}, []byte{5, 2}, []byte{5, 2}
	for i := range 30 {
		long = append(long, keytabEntry(fmt.Sprintf("%d\x1b%s", i, strings.Repeat("x", 30000)), "R", 18)...)
	}
	for i := range 20000 {
		many = append(many, keytabEntry(fmt.Sprintf("other%d", i), "R", 18)...)
		strange = append(strange, keytabEntry("svc", "R", 1000+uint16(i))...)
	}
	for name, c := range map[string]struct {
		keytab []byte
		code   api.Code
		want   string
	}{
		"long names":        {long, api.KeytabUnreadable, `no key of svc@R; it has keys of "0\x1bxxx`},
		"many names":        {many, api.KeytabUnreadable, `"other0@R", "other1@R", "other2@R", "other3@R", "other4@R" and others`},
		"many enctypes":     {strange, api.EtypeUnsupported, "enctype 1000, enctype 1001, enctype 1002, enctype 1003, enctype 1004 and others for svc@R"},
		"one name, 5 times": {append([]byte{5, 2}, strings.Repeat(string(keytabEntry("a, b", "R", 18)), 5)...), api.KeytabUnreadable, `keys of "a, b@R" (`},
	} {
		_, err := parseKeytab(c.keytab, "FILE", svc, false)
		if api.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\x1b") || len(err.Error()) > 2<<10 {
			t.Errorf("%s: %d bytes, %.3000v\nwant %s", name, len(fmt.Sprint(err)), err, c.want)
		}
	}
}
