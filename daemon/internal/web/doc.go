// Package web speaks HTTP for the login drivers: one Exchange is the dialogue
// that a login or a probe has with a site. Cookies, redirects inside the
// allowed hosts, the Negotiate scheme and its channel bindings, the proxy on the
// way and the classification of failures live here.
//
// What a product's pages mean does not belong here (package login), nor how a
// ticket is obtained (package krb), nor when to log in (package keeper).
package web
