//! The way of one image into the store: documents, then layers from the lowest up, then the record.

use std::fs::File;
use std::sync::Arc;

use nimbus_api::{Digest, Refusal, RefusalCode};
use nimbus_hooks::facts::MeasuredImage;
use rustix::fs::{self, AtFlags};

use super::archive::read_entries;
use super::decode::{self, Measured};
use super::document::{self, Config, LayerRef, Manifest, Top};
use super::fetch::{self, Length, Transport, Wanted};
use super::files;
use super::layers::{HalfMade, Marker, chain_ids, rootfs_digest};
use super::layout::Layout;
use super::limits::Deadline;
use super::merged::Stack;
use super::record::{RECORD_BYTES_MAX, Record};
use super::refuse::{internal, mismatch, tampered, too_large};
use super::registry::Registry;
use super::request::{ImageRequest, ImageSource, Platform};
use super::unpack::Unpacker;
use super::{Image, ImageStore};

/// The checked documents of one image.
struct Documents {
    top: (Digest, Vec<u8>),
    manifest: (Digest, Vec<u8>, Manifest),
    config: (Digest, Vec<u8>, Config),
}

impl ImageStore {
    pub(super) fn prepare_image(
        &self,
        request: &ImageRequest,
        mut deadline: Deadline,
    ) -> Result<MeasuredImage, Refusal> {
        let source = ImageSource::parse(&request.name)?;
        let platform = self.expect_platform(&request.platform)?;
        let known = || -> Result<Option<Arc<Image>>, Refusal> {
            Ok(self.image(&request.digest)?.filter(|image| image.record.has(&request.name)))
        };
        if let Some(image) = known()? {
            return self.checked(&image, &request.name);
        }
        let key = (request.name.clone(), request.digest);
        let _held = self.image_locks.lock(key, &request.name, &mut deadline)?;
        if let Some(image) = known()? {
            return self.checked(&image, &request.name);
        }
        let source = request.content.clone().map_or(source, ImageSource::Content);
        let place = source.place();
        let mut transport = self.transport(source)?;
        let documents = self.fetch(&mut *transport, &request.digest, &platform, &deadline)?;
        let layers = self.layers((&mut *transport, &place), &documents, &mut deadline)?;
        let mut record = self.new_record(request.digest, &documents, &layers)?;
        let _held = self.record_locks.lock(request.digest, request.digest, &mut deadline)?;
        let known = self.image(&request.digest)?;
        record.names = known.map(|image| image.record.names.clone()).unwrap_or_default();
        record.add(&request.name, self.config.limits.names);
        self.remember(&documents, &record)?;
        let image = Arc::new(Image::new(record, &documents.config.2, layers));
        self.cache(request.digest, Arc::clone(&image));
        self.checked(&image, &request.name)
    }

    /// Reads an image that an earlier run of the node prepared; none when there is none.
    pub(super) fn load(&self, digest: &Digest) -> Result<Option<Image>, Refusal> {
        let name = Record::file_name(digest);
        let Some(text) = files::read(&self.images, &name, RECORD_BYTES_MAX)? else {
            return Ok(None);
        };
        let record = Record::parse(&text, digest)?;
        let documents = self.kept_documents(&record)?;
        let diff_ids = &documents.config.2.diff_ids;
        if rootfs_digest(diff_ids) != record.rootfs {
            return Err(tampered(format!("the record of {digest} names another rootfs")));
        }
        let mut layers = Vec::new();
        for (chain_id, diff_id) in chain_ids(diff_ids).iter().zip(diff_ids) {
            let marker = self
                .unpacked
                .find(chain_id)?
                .filter(|marker| marker.diff_id == *diff_id)
                .ok_or_else(|| tampered(format!("layer {chain_id} has gone")))?;
            layers.push(marker);
        }
        Ok(Some(Image::new(record, &documents.config.2, layers)))
    }

    fn expect_platform(&self, asked: &str) -> Result<Platform, Refusal> {
        let asked = Platform::parse(asked)?;
        if asked != self.platform {
            return Err(Refusal::with(
                RefusalCode::ImagePlatform,
                format!("asked for was {asked}, this node is {}", self.platform),
            ));
        }
        Ok(asked)
    }

    fn transport(&self, source: ImageSource) -> Result<Box<dyn Transport>, Refusal> {
        Ok(match source {
            ImageSource::Layout(path) => Box::new(Layout::open(&path, &self.config.layout_roots)?),
            ImageSource::Content(path) => Box::new(Layout::of_content(&path)?),
            ImageSource::Registry { host, repository } => {
                Box::new(Registry::new(&host, &repository, &self.config.insecure_registries)?)
            }
        })
    }

    /// The document under the digest that was asked for comes from the source itself, so that an
    /// image is known under a name only when that name had it; the rest may be here already.
    fn fetch(
        &self,
        transport: &mut dyn Transport,
        digest: &Digest,
        platform: &Platform,
        deadline: &Deadline,
    ) -> Result<Documents, Refusal> {
        let limits = &self.config.limits;
        let wanted = (Wanted::Manifest, *digest, Length::AtMost(limits.manifest_bytes));
        let text = fetch::to_memory(transport, wanted, limits.tries, deadline)?;
        let mut get = |wanted, digest: Digest, size, limit| {
            if let Some(text) = self.document(&digest, limit)? {
                return Ok(text);
            }
            let what = (wanted, digest, Length::Exactly(size));
            fetch::to_memory(transport, what, limits.tries, deadline)
        };
        let (manifest_digest, manifest_text, manifest) =
            match document::top(&text, platform, limits)? {
                Top::Manifest(manifest) => (*digest, text.clone(), manifest),
                Top::Index(at) => {
                    let text = get(Wanted::Manifest, at.digest, at.size, limits.manifest_bytes)?;
                    let manifest = document::child(&text, platform, limits)?;
                    (at.digest, text, manifest)
                }
            };
        let at = manifest.config.clone();
        let config_text = get(Wanted::Blob, at.digest, at.size, limits.config_bytes)?;
        let config = document::config(&config_text, &manifest, platform, limits)?;
        Ok(Documents {
            top: (*digest, text),
            manifest: (manifest_digest, manifest_text, manifest),
            config: (at.digest, config_text, config),
        })
    }

    /// The documents of an image that was prepared before.
    fn kept_documents(&self, record: &Record) -> Result<Documents, Refusal> {
        let limits = &self.config.limits;
        let lost = || tampered(format!("a document of {} has gone", record.digest));
        let get = |digest: &Digest, limit| self.document(digest, limit)?.ok_or_else(lost);
        let text = get(&record.digest, limits.manifest_bytes)?;
        let (manifest_text, manifest) = match document::top(&text, &self.platform, limits)? {
            Top::Manifest(manifest) if record.manifest == record.digest => (text.clone(), manifest),
            Top::Index(at) if record.manifest == at.digest => {
                let text = get(&at.digest, limits.manifest_bytes)?;
                let manifest = document::child(&text, &self.platform, limits)?;
                (text, manifest)
            }
            Top::Manifest(_) | Top::Index(_) => return Err(lost()),
        };
        if manifest.config.digest != record.config {
            return Err(lost());
        }
        let config_text = get(&record.config, limits.config_bytes)?;
        let config = document::config(&config_text, &manifest, &self.platform, limits)?;
        Ok(Documents {
            top: (record.digest, text),
            manifest: (record.manifest, manifest_text, manifest),
            config: (record.config, config_text, config),
        })
    }

    /// A document in the store, its digest checked.
    fn document(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, Refusal> {
        let Some(text) = files::read(&self.documents, &digest.hex(), limit)? else {
            return Ok(None);
        };
        if Digest::of(&text) != *digest {
            return Err(tampered(format!("document {digest} in the store was changed")));
        }
        Ok(Some(text))
    }

    /// Every layer of the image, unpacked, lowest first.
    fn layers(
        &self,
        (transport, place): (&mut dyn Transport, &str),
        documents: &Documents,
        deadline: &mut Deadline,
    ) -> Result<Vec<Marker>, Refusal> {
        let (manifest, config) = (&documents.manifest.2, &documents.config.2);
        let chain = chain_ids(&config.diff_ids);
        let mut left = self.config.limits.image_bytes;
        let mut stack = Stack::default();
        let mut markers = Vec::new();
        for ((layer, diff_id), chain_id) in manifest.layers.iter().zip(&config.diff_ids).zip(&chain)
        {
            let ids = (*chain_id, *diff_id);
            let marker = match self.unpacked.find(chain_id)? {
                Some(marker) => marker,
                None => self.layer((transport, place), layer, &stack, ids, (left, deadline))?,
            };
            left = left.checked_sub(marker.bytes).ok_or_else(|| {
                too_large(format!("more than {} bytes unpacked", self.config.limits.image_bytes))
            })?;
            stack.push(self.unpacked.tree(&marker)?);
            markers.push(marker);
        }
        Ok(markers)
    }

    /// Fetches one layer, checks its blob, unpacks it, checks its diff id; or waits for somebody who
    /// does.
    fn layer(
        &self,
        (transport, place): (&mut dyn Transport, &str),
        layer: &LayerRef,
        lower: &Stack,
        ids: (Digest, Digest),
        (bytes_left, deadline): (u64, &mut Deadline),
    ) -> Result<Marker, Refusal> {
        let (chain_id, _) = ids;
        let layer_key = (chain_id, layer.blob.digest);
        let key = (place.to_owned(), layer_key);
        let _fetching = self.transfer_locks.lock(key, chain_id, deadline)?;
        if let Some(marker) = self.unpacked.find(&chain_id)? {
            return Ok(marker);
        }
        let blob = self.blob(transport, layer, deadline)?;
        let _unpacking = self.layer_locks.lock(layer_key, chain_id, deadline)?;
        match self.unpacked.find(&chain_id)? {
            Some(marker) => Ok(marker),
            None => self.unpack((blob, layer), lower, ids, (bytes_left, deadline)),
        }
    }

    /// A layer as it is stored, in a file without a name, rewound.
    fn blob(
        &self,
        transport: &mut dyn Transport,
        layer: &LayerRef,
        deadline: &Deadline,
    ) -> Result<File, Refusal> {
        let (name, file) = files::temporary_file(&self.scratch)?;
        // The name is not needed again, and so there is nothing to clean up.
        fs::unlinkat(&self.scratch, &name, AtFlags::empty())
            .map_err(|error| internal("unlinking a temporary file", error))?;
        fetch::to_file(transport, &layer.blob, &file, self.config.limits.tries, deadline)?;
        fs::seek(&file, fs::SeekFrom::Start(0))
            .map_err(|error| internal("rewinding a blob", error))?;
        Ok(file)
    }

    fn unpack(
        &self,
        (blob, layer): (File, &LayerRef),
        lower: &Stack,
        ids: (Digest, Digest),
        (bytes_left, deadline): (u64, &Deadline),
    ) -> Result<Marker, Refusal> {
        let limits = &self.config.limits;
        let made = HalfMade::begin(&self.scratch, limits.depth)?;
        let unpacked = (|| {
            let limit = limits.layer_bytes.min(bytes_left);
            let stream = decode::open(blob, layer.compression)?;
            let mut stream = Measured::new(stream, limit, deadline.clone());
            let mut unpacker = Unpacker::new(made.tree()?, lower, limits, deadline.clone())?;
            read_entries(&mut stream, limits, |entry, data| unpacker.apply(&entry, data))?;
            let (found, bytes) = stream.finish();
            if found != ids.1 {
                return Err(mismatch(format!("expected diff id {}, found {found}", ids.1)));
            }
            Ok((bytes, unpacker.finish()?))
        })();
        match unpacked {
            Ok(size) => self.unpacked.keep(made, ids, size),
            Err(refusal) => {
                made.discard()?;
                Err(refusal)
            }
        }
    }

    fn new_record(
        &self,
        digest: Digest,
        documents: &Documents,
        layers: &[Marker],
    ) -> Result<Record, Refusal> {
        let mut stack = Stack::default();
        for marker in layers {
            stack.push(self.unpacked.tree(marker)?);
        }
        let rootfs = rootfs_digest(&documents.config.2.diff_ids);
        let mut record = Record::new(digest, documents.manifest.0, documents.config.0, rootfs);
        record.hostile_mount_point = stack.hostile_mount_point()?;
        Ok(record)
    }

    /// Documents first: a record never names what is not there.
    fn remember(&self, documents: &Documents, record: &Record) -> Result<(), Refusal> {
        let texts = [
            (&documents.top.0, &documents.top.1),
            (&documents.manifest.0, &documents.manifest.1),
            (&documents.config.0, &documents.config.1),
        ];
        for (digest, text) in texts {
            let present = files::lstat(&self.documents, digest.hex().as_bytes())
                .map_err(|error| internal("looking for a document", error))?;
            if present.is_none() {
                files::write_atomically(&self.scratch, &self.documents, &digest.hex(), text)?;
            }
        }
        let name = Record::file_name(&record.digest);
        files::write_atomically(&self.scratch, &self.images, &name, &record.to_json())
    }
}
