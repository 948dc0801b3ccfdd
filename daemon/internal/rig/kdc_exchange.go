package rig

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/jcmturner/gofork/encoding/asn1"
	"github.com/jcmturner/gokrb5/v8/asn1tools"
	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana"
	"github.com/jcmturner/gokrb5/v8/iana/asnAppTag"
	"github.com/jcmturner/gokrb5/v8/iana/errorcode"
	"github.com/jcmturner/gokrb5/v8/iana/flags"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/iana/msgtype"
	"github.com/jcmturner/gokrb5/v8/iana/nametype"
	"github.com/jcmturner/gokrb5/v8/iana/patype"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"
)

// answer returns the reply to a message, or an error if it is none that a KDC
// answers.
func (k *KDC) answer(request []byte, mode Mode) (reply []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("rig: malformed request: %v", p)
		}
	}()
	if len(request) == 0 {
		return nil, errors.New("rig: empty request")
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	var rep *messages.KDCRepFields
	switch int(request[0]) - 0x60 {
	case asnAppTag.ASREQ:
		rep, err = k.as(request, mode)
	case asnAppTag.TGSREQ:
		rep, err = k.tgs(request, mode)
	default:
		err = errors.New("rig: neither AS-REQ nor TGS-REQ")
	}
	if e, ok := errors.AsType[messages.KRBError](err); ok {
		return e.Marshal()
	}
	if err != nil {
		return nil, err
	}
	if rep.MsgType == msgtype.KRB_AS_REP {
		return (&messages.ASRep{KDCRepFields: *rep}).Marshal()
	}
	return (&messages.TGSRep{KDCRepFields: *rep}).Marshal()
}

// fail returns a KRB-ERROR (RFC 4120, 5.9.1).
func (k *KDC) fail(code int32, server types.PrincipalName, text string) messages.KRBError {
	return krbError(k.now(), code, k.realm, server, text)
}

func krbError(now time.Time, code int32, realm string, server types.PrincipalName, text string) messages.KRBError {
	e := messages.NewKRBError(server, realm, code, text)
	e.STime = now.UTC()
	e.Susec = now.Nanosecond() / 1000
	return e
}

// sameRealm says whether a request means this realm.
func (k *KDC) sameRealm(realm string) bool {
	return realm == k.realm || k.foldCase && strings.EqualFold(realm, k.realm)
}

// as answers an AS-REQ (RFC 4120, 3.1). The texts are MIT's.
func (k *KDC) as(request []byte, mode Mode) (*messages.KDCRepFields, error) {
	var req messages.ASReq
	if err := req.Unmarshal(request); err != nil {
		return nil, err
	}
	k.counts.AS++
	body := req.ReqBody
	tgs := body.SName
	client := k.find(body.CName.PrincipalNameString())
	krbtgt := k.account("krbtgt/" + k.realm)
	switch {
	case !k.sameRealm(body.Realm):
		return nil, k.fail(errorcode.KDC_ERR_WRONG_REALM, tgs, "WRONG_REALM")
	case client == nil:
		return nil, k.fail(errorcode.KDC_ERR_C_PRINCIPAL_UNKNOWN, tgs, "CLIENT_NOT_FOUND")
	case len(tgs.NameString) != 2 || tgs.NameString[0] != "krbtgt" || !k.sameRealm(tgs.NameString[1]):
		return nil, k.fail(errorcode.KDC_ERR_S_PRINCIPAL_UNKNOWN, tgs, "SERVER_NOT_FOUND")
	case client.refusal != 0:
		return nil, k.fail(client.refusal, tgs, "")
	}
	key, ok := client.firstKey(body.EType)
	if !ok {
		return nil, k.fail(errorcode.KDC_ERR_ETYPE_NOSUPP, tgs, "BAD_ENCRYPTION_TYPE")
	}
	now := k.now().UTC().Truncate(time.Second) // as tickets have it
	stamped, err := k.preauthenticated(req, client, now, mode)
	if err != nil {
		return nil, err
	}
	session, ok := krbtgt.firstKey(body.EType)
	if !ok {
		return nil, k.fail(errorcode.KDC_ERR_ETYPE_NOSUPP, tgs, "BAD_ENCRYPTION_TYPE")
	}

	i := &issued{realm: k.realm, name: krbtgt.name, server: krbtgt, part: messages.EncTicketPart{
		Flags: types.NewKrbFlags(), Key: newKey(session.KeyType), CRealm: k.realm, CName: body.CName,
		Transited: messages.TransitedEncoding{TRType: domainX500Compress},
		AuthTime:  now, StartTime: now, EndTime: k.end(now, body.Till),
	}}
	if a := k.alias(tgs.PrincipalNameString()); a != nil {
		i.name, i.server = a.name, a
	}
	if types.IsFlagSet(&body.KDCOptions, flags.Canonicalize) {
		i.part.CName.NameString = client.name
	}
	types.SetFlag(&i.part.Flags, flags.Initial)
	if stamped {
		types.SetFlag(&i.part.Flags, flags.PreAuthent)
	}
	for _, flag := range []int{flags.Forwardable, flags.Proxiable} {
		if types.IsFlagSet(&body.KDCOptions, flag) {
			types.SetFlag(&i.part.Flags, flag)
		}
	}
	if k.renewLife > 0 {
		i.renewable(body, now.Add(k.renewLife))
	}
	if wantsPAC(req.PAData) {
		if i.part.AuthorizationData, err = pac(client.pac); err != nil {
			return nil, err
		}
	}
	info, err := etypeInfo2(client, []int32{key.KeyType}, mode)
	if err != nil {
		return nil, err
	}
	rep := &messages.KDCRepFields{PVNO: iana.PVNO, MsgType: msgtype.KRB_AS_REP,
		PAData: types.PADataSequence{info}, CRealm: k.realm, CName: i.part.CName}
	if err := k.fill(rep, i, body.Nonce, key, keyusage.AS_REP_ENCPART, client.kvno, mode); err != nil {
		return nil, err
	}
	k.counts.ASTGT++
	return rep, nil
}

// preauthenticated checks the encrypted timestamp of an AS-REQ (RFC 4120,
// 5.2.7.2) or demands one. It returns false for a principal that came without
// and needs none.
func (k *KDC) preauthenticated(req messages.ASReq, client *account, now time.Time, mode Mode) (bool, error) {
	tgs := req.ReqBody.SName
	i := slices.IndexFunc(req.PAData, func(pa types.PAData) bool { return pa.PADataType == patype.PA_ENC_TIMESTAMP })
	if i < 0 && client.noPreauth {
		return false, nil
	}
	if i < 0 {
		info, err := etypeInfo2(client, req.ReqBody.EType, mode)
		if err != nil {
			return false, err
		}
		var methods types.PADataSequence
		if mode == ManyPAData {
			for n := range int32(10_000) {
				methods = append(methods, types.PAData{PADataType: 10_000 + n, PADataValue: []byte{}})
			}
		}
		methods = append(methods, info, types.PAData{PADataType: patype.PA_ENC_TIMESTAMP, PADataValue: []byte{}})
		e := k.fail(errorcode.KDC_ERR_PREAUTH_REQUIRED, tgs, "NEEDED_PREAUTH")
		e.EData, err = asn1.Marshal(methods)
		return false, cmp.Or(err, error(e))
	}
	var sealed types.EncryptedData
	if err := sealed.Unmarshal(req.PAData[i].PADataValue); err != nil {
		return false, err
	}
	key, _ := client.key(sealed.EType)
	plain, err := crypto.DecryptEncPart(sealed, key, keyusage.AS_REQ_PA_ENC_TIMESTAMP)
	if err != nil {
		k.counts.PreauthFailed++
		return false, k.fail(errorcode.KDC_ERR_PREAUTH_FAILED, tgs, "PREAUTH_FAILED")
	}
	var stamp types.PAEncTSEnc
	if err := stamp.Unmarshal(plain); err != nil {
		return false, err
	}
	if stamp.PATimestamp.Sub(now).Abs() > skew {
		return false, k.fail(errorcode.KRB_AP_ERR_SKEW, tgs, "PREAUTH_FAILED")
	}
	return true, nil
}

// etypeInfo2 tells how a client makes its keys of those etypes that it has (RFC
// 4120, 5.2.7.5), in the order of the etypes, as MIT does.
func etypeInfo2(client *account, etypes []int32, mode Mode) (types.PAData, error) {
	var info types.ETypeInfo2
	for _, etype := range etypes {
		if _, ok := client.key(etype); !ok {
			continue
		}
		entry := types.ETypeInfo2Entry{EType: etype, Salt: client.salt}
		switch {
		case mode == HugeIterations:
			entry.S2KParams = binary.BigEndian.AppendUint32(nil, math.MaxUint32)
		case client.iterations != 0 && etype != RC4:
			entry.S2KParams = binary.BigEndian.AppendUint32(nil, client.iterations)
		}
		info = append(info, entry)
	}
	value, err := asn1.Marshal(info)
	return types.PAData{PADataType: patype.PA_ETYPE_INFO2, PADataValue: value}, err
}

// paPACRequest is the type of PA-PAC-REQUEST (MS-KILE 2.2.3).
const paPACRequest = 128

// wantsPAC says whether an AS-REQ lets the TGT have a PAC.
func wantsPAC(padata types.PADataSequence) bool {
	for _, pa := range padata {
		if pa.PADataType == paPACRequest {
			var want struct {
				Include bool `asn1:"explicit,tag:0"`
			}
			_, err := asn1.Unmarshal(pa.PADataValue, &want)
			return err != nil || want.Include
		}
	}
	return true
}

// kdcReq is a KDC-REQ (RFC 4120, 5.4.1) with its body as the sender encoded
// it, because a checksum covers those bytes.
type kdcReq struct {
	PVNO    int                  `asn1:"explicit,tag:1"`
	MsgType int                  `asn1:"explicit,tag:2"`
	PAData  types.PADataSequence `asn1:"explicit,optional,tag:3"`
	ReqBody asn1.RawValue        `asn1:"explicit,tag:4"`
}

// tgs answers a TGS-REQ (RFC 4120, 3.3).
func (k *KDC) tgs(request []byte, mode Mode) (*messages.KDCRepFields, error) {
	var raw kdcReq
	if _, err := asn1.UnmarshalWithParams(request, &raw, fmt.Sprintf("application,explicit,tag:%d", asnAppTag.TGSREQ)); err != nil {
		return nil, err
	}
	var body messages.KDCReqBody
	if err := body.Unmarshal(raw.ReqBody.Bytes); err != nil {
		return nil, err
	}
	fail := func(code int32, text string) (*messages.KDCRepFields, error) {
		return nil, k.fail(code, body.SName, text)
	}
	i := slices.IndexFunc(raw.PAData, func(pa types.PAData) bool { return pa.PADataType == patype.PA_TGS_REQ })
	if i < 0 {
		return fail(errorcode.KDC_ERR_PADATA_TYPE_NOSUPP, "NO_PREAUTH")
	}
	var ap messages.APReq
	if err := ap.Unmarshal(raw.PAData[i].PADataValue); err != nil {
		return nil, err
	}
	sealer := k.ticketKey(ap.Ticket)
	if sealer == nil {
		return fail(errorcode.KRB_AP_ERR_NOT_US, "PROCESS_TGS")
	}
	tgtKey, ok := sealer.key(ap.Ticket.EncPart.EType)
	if !ok || ap.Ticket.EncPart.KVNO != sealer.kvno {
		return fail(errorcode.KRB_AP_ERR_BADKEYVER, "PROCESS_TGS")
	}
	if err := ap.Ticket.Decrypt(tgtKey); err != nil {
		return fail(errorcode.KRB_AP_ERR_BAD_INTEGRITY, "PROCESS_TGS")
	}
	tgt := ap.Ticket.DecryptedEncPart
	if err := ap.DecryptAuthenticator(tgt.Key); err != nil {
		return fail(errorcode.KRB_AP_ERR_BAD_INTEGRITY, "PROCESS_TGS")
	}
	now := k.now().UTC().Truncate(time.Second) // as tickets have it
	auth := ap.Authenticator
	sum, err := crypto.GetChksumEtype(auth.Cksum.CksumType)
	switch {
	case !auth.CName.Equal(tgt.CName) || auth.CRealm != tgt.CRealm:
		return fail(errorcode.KRB_AP_ERR_BADMATCH, "PROCESS_TGS")
	case auth.CTime.Sub(now).Abs() > skew:
		return fail(errorcode.KRB_AP_ERR_SKEW, "PROCESS_TGS")
	case now.Sub(tgt.EndTime) > skew:
		return fail(errorcode.KRB_AP_ERR_TKT_EXPIRED, "PROCESS_TGS")
	case err != nil:
		return fail(errorcode.KDC_ERR_SUMTYPE_NOSUPP, "PROCESS_TGS")
	case !sum.VerifyChecksum(tgt.Key.KeyValue, raw.ReqBody.Bytes, auth.Cksum.Checksum, keyusage.TGS_REQ_PA_TGS_REQ_AP_REQ_AUTHENTICATOR_CHKSUM):
		return fail(errorcode.KRB_AP_ERR_MODIFIED, "PROCESS_TGS")
	}

	server, name := k.server(body)
	if server == nil || !k.sameRealm(body.Realm) {
		return fail(errorcode.KDC_ERR_S_PRINCIPAL_UNKNOWN, "LOOKING_UP_SERVER")
	}
	session, ok := server.firstKey(body.EType)
	if !ok {
		return fail(errorcode.KDC_ERR_ETYPE_NOSUPP, "BAD_ENCRYPTION_TYPE")
	}
	issue := &issued{realm: k.realm, name: name, server: server, part: messages.EncTicketPart{
		Key: newKey(session.KeyType), CRealm: tgt.CRealm, CName: tgt.CName, Transited: k.transited(ap.Ticket),
		AuthTime: tgt.AuthTime, StartTime: now, AuthorizationData: tgt.AuthorizationData,
	}}
	renew := types.IsFlagSet(&body.KDCOptions, flags.Renew)
	if renew {
		switch {
		case !slices.Equal(name, ap.Ticket.SName.NameString) || ap.Ticket.Realm != k.realm:
			return fail(errorcode.KDC_ERR_SERVER_NOMATCH, "TGT NOT RENEWABLE")
		case !types.IsFlagSet(&tgt.Flags, flags.Renewable):
			return fail(errorcode.KDC_ERR_BADOPTION, "TGT NOT RENEWABLE")
		case !tgt.RenewTill.After(now):
			return fail(errorcode.KRB_AP_ERR_TKT_EXPIRED, "RENEW_TILL")
		}
		issue.renew(tgt)
	} else {
		issue.derive(body, tgt, k.end(now, body.Till), now.Add(k.renewLife))
		if tgt.CRealm != k.realm {
			types.SetFlag(&issue.part.Flags, flags.TransitedPolicyChecked)
		}
	}

	rep := &messages.KDCRepFields{PVNO: iana.PVNO, MsgType: msgtype.KRB_TGS_REP, CRealm: tgt.CRealm, CName: tgt.CName}
	// RFC 4120, 3.3.3: under the authenticator's subkey, if it has one.
	key, usage := tgt.Key, uint32(keyusage.TGS_REP_ENCPART_SESSION_KEY)
	if len(auth.SubKey.KeyValue) > 0 {
		key, usage = auth.SubKey, keyusage.TGS_REP_ENCPART_AUTHENTICATOR_SUB_KEY
	}
	if err := k.fill(rep, issue, body.Nonce, key, usage, 0, mode); err != nil {
		return nil, err
	}
	k.counts.TGS++
	if renew {
		k.counts.Renewed++
	}
	if name[0] == "krbtgt" && !slices.Equal(name, body.SName.NameString) {
		k.counts.Referrals++
	}
	return rep, nil
}

// end returns when a ticket asked for until till ends.
func (k *KDC) end(now, till time.Time) time.Time {
	end := now.Add(k.life)
	if till.Before(end) && till.Unix() > 0 { // RFC 4120, 5.4.1: 1970 asks for the longest life
		return till
	}
	return end
}

// issued is a ticket that is about to be sealed.
type issued struct {
	realm  string
	name   []string
	server *account
	part   messages.EncTicketPart
}

// renewable makes the ticket renewable, at most until latest, if the request
// wants that (RFC 4120, 2.3) or takes it for a longer life (RENEWABLE-OK).
func (i *issued) renewable(body messages.KDCReqBody, latest time.Time) {
	var until time.Time
	asked := types.IsFlagSet(&body.KDCOptions, flags.Renewable)
	switch {
	case asked && body.RTime.Unix() > 0:
		until = body.RTime
	case asked:
		until = latest
	case types.IsFlagSet(&body.KDCOptions, flags.RenewableOK) && body.Till.After(i.part.EndTime):
		until = body.Till
	default:
		return
	}
	if until.After(latest) {
		until = latest
	}
	if asked || until.After(i.part.EndTime) {
		i.part.RenewTill = until
		types.SetFlag(&i.part.Flags, flags.Renewable)
	}
}

// derive gives the ticket what a TGT allows (RFC 4120, 3.3.3): it ends at end,
// and can be renewed until latest, but both not after the TGT.
func (i *issued) derive(body messages.KDCReqBody, tgt messages.EncTicketPart, end, latest time.Time) {
	i.part.Flags = types.NewKrbFlags()
	i.part.EndTime = end
	if end.After(tgt.EndTime) {
		i.part.EndTime = tgt.EndTime
	}
	if types.IsFlagSet(&tgt.Flags, flags.PreAuthent) {
		types.SetFlag(&i.part.Flags, flags.PreAuthent)
	}
	for _, flag := range []int{flags.Forwardable, flags.Proxiable} {
		if types.IsFlagSet(&body.KDCOptions, flag) && types.IsFlagSet(&tgt.Flags, flag) {
			types.SetFlag(&i.part.Flags, flag)
		}
	}
	if types.IsFlagSet(&tgt.Flags, flags.Renewable) {
		if latest.After(tgt.RenewTill) {
			latest = tgt.RenewTill
		}
		i.renewable(body, latest)
	}
}

// renew gives the ticket the life of an old one once more, but not beyond its
// renew-till (RFC 4120, 3.3.3.1). The flags stay, as at MIT (get_ticket_flags).
func (i *issued) renew(old messages.EncTicketPart) {
	i.part.Flags = old.Flags
	i.part.RenewTill = old.RenewTill
	i.part.EndTime = i.part.StartTime.Add(old.EndTime.Sub(old.StartTime))
	if i.part.EndTime.After(old.RenewTill) {
		i.part.EndTime = old.RenewTill
	}
}

// fill seals the ticket and puts it and the client's part into a reply, with
// the mode's lies.
func (k *KDC) fill(rep *messages.KDCRepFields, i *issued, nonce int, key types.EncryptionKey, usage uint32, kvno int, mode Mode) error {
	b, err := asn1.Marshal(i.part)
	if err != nil {
		return err
	}
	sealed, err := crypto.GetEncryptedData(asn1tools.AddASNAppTag(b, asnAppTag.EncTicketPart), i.server.keys[0], keyusage.KDC_REP_TICKET, i.server.kvno)
	if err != nil {
		return err
	}
	name := types.PrincipalName{NameType: nametype.KRB_NT_SRV_INST, NameString: i.name}
	rep.Ticket = messages.Ticket{TktVNO: iana.PVNO, Realm: i.realm, SName: name, EncPart: sealed}
	k.last = ticketOf(rep.Ticket, i.part)
	part := messages.EncKDCRepPart{
		Key: i.part.Key, LastReqs: []messages.LastReq{{LRValue: i.part.AuthTime}}, Nonce: nonce, Flags: i.part.Flags,
		AuthTime: i.part.AuthTime, StartTime: i.part.StartTime, EndTime: i.part.EndTime, RenewTill: i.part.RenewTill,
		SRealm: i.realm, SName: name,
	}
	switch mode {
	case WrongNonce:
		part.Nonce ^= 1
	case WrongClient:
		rep.CName.NameString = []string{"root"}
	case WrongServer:
		part.SName.NameString, rep.Ticket.SName.NameString = evil.server, evil.server
	case WrongRealm:
		part.SRealm, rep.Ticket.Realm = evil.realm, evil.realm
	case ShortKey:
		part.Key.KeyValue = part.Key.KeyValue[1:]
	case WrongKey:
		key = newKey(key.KeyType)
	case WrongType:
		rep.MsgType = msgtype.KRB_AS_REP + msgtype.KRB_TGS_REP - rep.MsgType
	}
	if b, err = part.Marshal(); err != nil {
		return err
	}
	rep.EncPart, err = crypto.GetEncryptedData(b, key, usage, kvno)
	return err
}
