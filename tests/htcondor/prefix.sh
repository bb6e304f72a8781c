# shellcheck shell=bash
# Debian 12 has no HTCondor.  build_prefix makes /opt/htcondor of Debian 13's: the programs, the C library and all else
# they link to, changed by patchelf to run from there.  Nothing is registered with this machine's dpkg and no
# maintainer script runs.  Sourced by up.sh.

build_prefix() {
  local suite=trixie build=$PREFIX.build uri root file loader apt
  [ ! -e $PREFIX/complete ] || return 0
  say "building $PREFIX"
  install_packages patchelf debian-archive-keyring
  rm -rf "$build" $PREFIX
  mkdir -p "$build"/{lists/partial,archives/partial,root} $PREFIX/{bin,sbin,libexec,lib,etc}

  # HTCondor and all it needs, by an apt that believes nothing to be installed
  uri=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null |
    sed -nE 's/^(URIs:|deb( \[[^]]*\])?) *(https?:[^ ]*\/debian)\/?( .*)?$/\3/p' || true)
  uri=${uri%%$'\n'*}
  [ -n "$uri" ] || die "apt has no Debian mirror to ask for $suite"
  : >"$build/status"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $suite main" >"$build/sources.list"
  apt=(apt-get -qq -y -o Dir::State::status="$build/status" -o Dir::State::lists="$build/lists"
    -o Dir::Cache="$build" -o Dir::Cache::archives="$build/archives"
    -o Dir::Etc::sourcelist="$build/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o APT::Sandbox::User=root -o APT::Install-Recommends=false -o Acquire::Languages=none -o Debug::NoLocking=1)
  "${apt[@]}" update </dev/null >&2 9>&-
  "${apt[@]}" --download-only install condor </dev/null >/dev/null 9>&-
  root=$build/root
  for file in "$build"/archives/*.deb; do dpkg-deb -x "$file" "$root"; done

  cp -a "$root"/usr/bin/{condor_*,classad_*} $PREFIX/bin/
  cp -a "$root"/usr/sbin/{condor_*,procd_ctl,gidd_alloc} $PREFIX/sbin/
  cp -a "$root"/usr/libexec/condor/. $PREFIX/libexec/
  # all libraries: some are opened at run time only
  cp -a "$root"/usr/lib/lib{condor_utils,classad,chirp_client,getpwnam}*.so* $PREFIX/lib/
  for file in "$root"/{usr/,}lib/*-linux-gnu; do
    [ ! -d "$file" ] || find "$file" -maxdepth 1 -name '*.so*' \( -type f -o -type l \) -exec cp -a -t $PREFIX/lib/ {} +
  done
  find $PREFIX/lib -xtype l -delete
  loader=$(echo $PREFIX/lib/ld-linux-*.so.*)
  [ -x "$loader" ] || die "no loader in $PREFIX/lib"

  while IFS= read -r -d '' file; do
    [ "$(head -c 4 "$file" | tr -d '\0')" = $'\x7fELF' ] || continue
    case $file in
      *.so | *.so.*) ;;
      *) patchelf --set-interpreter "$loader" "$file" 2>/dev/null || continue ;;
    esac
    patchelf --force-rpath --set-rpath $PREFIX/lib "$file"
  done < <(find $PREFIX/{bin,sbin,libexec} -type f -print0)
  # the C library and its friends are found by the paths of those who load them
  for file in $PREFIX/lib/lib{condor_utils,classad,chirp_client,getpwnam}*.so*; do
    [ -L "$file" ] || patchelf --force-rpath --set-rpath $PREFIX/lib "$file"
  done
  $PREFIX/bin/condor_version >$PREFIX/complete.new
  rm -rf "$build"
  mv $PREFIX/complete.new $PREFIX/complete
}
